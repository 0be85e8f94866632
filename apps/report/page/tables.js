// Figures and configuration of the runs side by side.

const statusText = (run) => run.status || 'without an end: killed, or going on';

function figures() {
  const rows = [
    ['status', statusText],
    ['steps', (run) => lastStep(run) < 0 ? '–' : whole(lastStep(run))],
    ['time of training', (run) => run.elapsed.points > 0 ? duration(run.elapsed.greatest) : '–'],
    ['ranks', (run) => run.ranks > 0 ? `${run.ranks}${run.device ? ` on ${run.device}` : ''}` : run.device || '–'],
  ];
  return rows.concat([...finalFigures(), ...seriesFigures()].sort(([a], [b]) => groupOrder(a) - groupOrder(b)));
}

const groupOrder = (name) => {
  const order = ['test', 'eval', 'train', 'perf', 'memory'];
  return (order.indexOf(name.slice(0, name.indexOf('/'))) + order.length + 1) % (order.length + 1);
};

function finalFigures() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.final)))].sort();
  return names.map((name) => [name, (run) => Object.hasOwn(run.final, name) ? number(run.final[name]) : '–', 'at the end']);
}

// Of values that are logged over and over: those of their figures that tell something.
function seriesFigures() {
  const told = (name) => /(^|\/)loss$/.test(name) ? ['last', 'least'] : /(^|\/)accuracy$/.test(name) ? ['last', 'greatest'] :
      ['perf/samples_per_second', 'perf/step_ms'].includes(name) ? ['average'] : name.startsWith('memory/') ? ['greatest'] : [];
  const names = [...new Set(runs.flatMap((run) => seriesOf(run).map(([name]) => name)))].sort();
  return names.flatMap((name) => told(name).map((figure) => [name, (run) =>
      Object.hasOwn(run.series, name) ? number(run.series[name][figure]) : '–', figure]));
}

const settings = (key) => [...new Set(runs.flatMap((run) => Object.keys(run[key])))].sort()
    .map((name) => [name, (run) => Object.hasOwn(run[key], name) ? run[key][name] : '–']);

// A table with a column for each run; rows are [name, text of a run, note]. Where `mark` is set, rows that differ stand out.
function comparison(caption, rows, mark) {
  const body = rows.map(([name, text, note]) => {
    const texts = runs.map(text);
    const differs = mark && new Set(texts).size > 1;
    return make('tr', {class: differs ? 'differs' : 'same'},
        make('th', {scope: 'row'}, name, note ? make('span', {class: 'aside'}, ` ${note}`) : null,
             differs ? make('span', {class: 'aside'}, ' differs') : null),
        ...texts.map((value) => make('td', {}, value)));
  });
  const head = make('tr', {}, make('th', {scope: 'col'}, caption),
      ...runs.map((run, index) => make('th', {scope: 'col', title: run.directory}, make('span', {class: 'run'}, swatch(index), run.label))));
  return make('div', {class: 'scroll'}, make('table', {class: 'comparison'}, make('thead', {}, head), make('tbody', {}, ...body)));
}

// The same of one run, which needs no columns.
function listing(rows) {
  return make('dl', {class: 'listing'}, ...rows.map(([name, text, note]) => make('div', {},
      make('dt', {}, name, note ? ` ${note}` : ''), make('dd', {}, text(runs[0])))));
}
const table = (caption, rows, mark) => runs.length > 1 ? comparison(caption, rows, mark) : listing(rows);

function addFigures() {
  section('Figures', table('value', figures(), false));
}

function addConfiguration() {
  const rows = settings('config'), versions = settings('versions');
  const flags = table('flag', rows, true);
  const count = flags.querySelectorAll('.differs').length;
  const children = [];
  if (runs.length > 1) {
    const only = make('input', {type: 'checkbox', onchange: () => flags.classList.toggle('only-differences', only.checked)});
    if (count > 0) only.click();
    flags.classList.toggle('only-differences', only.checked);
    children.push(make('p', {}, make('label', {}, only, ` only what differs (${count} of ${rows.length})`)));
  }
  if (rows.length > 0) children.push(flags);
  else children.push(make('p', {class: 'empty'}, 'The log tells no configuration.'));
  if (versions.length > 0) children.push(make('details', {}, make('summary', {}, 'Versions'), table('of', versions, true)));
  section('Configuration', ...children);
}

function addNotes() {
  const notes = runs.flatMap((run) => [...run.notes, ...notFinite(run)].map((note) => [run, note]));
  if (notes.length === 0) return;
  section('Notes', make('ul', {class: 'notes'}, ...notes.map(([run, note]) => make('li', {},
      runs.length > 1 ? make('b', {}, `${run.label}: `) : null, note))));
}

function notFinite(run) {
  return seriesOf(run).filter(([, series]) => series.not_finite).map(([name, series]) =>
      `${whole(series.not_finite[0])} values of ${name} are infinite or NaN, first at step ${whole(series.not_finite[1])}`);
}
