// Where the time of a step goes: a bar for each rank, and areas over the steps.

const partOrder = ['data_wait', 'forward', 'backward', 'communication', 'optimizer', 'other'];
const partTitle = (part) => part.replace(/_/g, ' ');

// Of each rank that logged any: [rank, Map of part to series], in the order of ranks.
function ranksOf(run) {
  const ranks = new Map();
  for (const [name, series] of seriesOf(run)) {
    const match = partName.exec(name);
    if (!match) continue;
    if (!ranks.has(Number(match[1]))) ranks.set(Number(match[1]), new Map());
    ranks.get(Number(match[1])).set(match[2], series);
  }
  return [...ranks].sort(([a], [b]) => a - b);
}

function allParts() {
  const parts = new Set(runs.flatMap((run) => ranksOf(run).flatMap(([, series]) => [...series.keys()])));
  return [...partOrder.filter((part) => parts.has(part)), ...[...parts].filter((part) => !partOrder.includes(part)).sort()];
}
const partColour = (parts, part) => palette().parts[parts.indexOf(part) % palette().parts.length];

function bar(run, index, rank, series, parts, longest) {
  const values = parts.map((part) => [part, series.has(part) ? series.get(part).average || 0 : 0]).filter(([, ms]) => ms > 0);
  const total = values.reduce((sum, [, ms]) => sum + ms, 0);
  const text = `${run.label}, rank ${rank}: ${number(total)} ms a step; ` +
      values.map(([part, ms]) => `${partTitle(part)} ${number(ms)} ms`).join(', ');
  return make('div', {class: 'bar', role: 'img', 'aria-label': text},
      make('span', {class: 'who'}, swatch(index), `rank ${rank}`),
      make('span', {class: 'track'}, ...values.map(([part, ms]) => make('span', {
        class: 'piece', title: `${partTitle(part)}: ${number(ms)} ms, ${number(100 * ms / total)} % of the step`,
        style: {width: `${100 * ms / longest}%`, background: partColour(parts, part)}}))),
      make('span', {class: 'total'}, `${total < 1000 ? total.toPrecision(3) : Math.round(total)} ms`));
}

const totalOf = (series) => [...series.values()].reduce((sum, part) => sum + (part.average || 0), 0);

function bars(parts) {
  const shown = runs.map((run, index) => [run, index]).filter(([run, index]) => view.shown[index] && ranksOf(run).length > 0);
  const longest = Math.max(...shown.flatMap(([run]) => ranksOf(run).map(([, series]) => totalOf(series))));
  return shown.map(([run, index]) => make('div', {class: 'bars'}, runs.length > 1 ? make('h3', {}, run.label) : null,
      ...ranksOf(run).map(([rank, series]) => bar(run, index, rank, series, parts, longest))));
}

// Areas over the steps, of the rank that is chosen.
class PartsPlot {
  constructor(parts) {
    this.parts = parts;
    this.choices = runs.flatMap((run, index) => ranksOf(run).map(([rank, series]) => ({run, index, rank, series})));
    this.select = make('select', {onchange: () => this.draw()}, ...this.choices.map((choice, at) => make('option',
        {value: at}, `${runs.length > 1 ? `${choice.run.label}, ` : ''}rank ${choice.rank}`)));
    this.canvas = make('div', {class: 'plot', role: 'img'});
    this.hover = make('div', {class: 'hover', hidden: true});
    this.cut = make('span', {class: 'aside cut'});
    this.legend = make('p', {class: 'legend'});
    this.bars = make('div', {});
    const caption = make('figcaption', {}, make('b', {}, 'Over the steps (ms)'), this.cut, make('label', {}, 'of ', this.select));
    this.element = make('div', {}, this.legend, make('div', {class: 'halves'},
        make('figure', {}, make('figcaption', {}, make('b', {}, 'Mean of all steps, by rank')), this.bars),
        make('figure', {class: 'curve'}, caption, make('div', {class: 'frame'}, this.canvas, this.hover))));
  }

  draw() {
    this.legend.replaceChildren(...this.parts.map((part) => make('span', {}, make('span', {class: 'swatch',
        style: {background: partColour(this.parts, part)}}), partTitle(part))));
    this.bars.replaceChildren(...bars(this.parts));
    if (this.graph) this.graph.destroy();
    const {run, rank, series} = this.choices[Number(this.select.value)];
    const parts = this.parts.filter((part) => series.has(part));
    const rows = new Map();
    parts.forEach((part, column) => stepsOf(run, series.get(part)).forEach((step, at) => {
      const x = view.byTime ? secondsAt(run, step) : step;
      if (!rows.has(x)) rows.set(x, new Array(parts.length).fill(0));
      rows.get(x)[column] = series.get(part).mean[at] || 0;
    }));
    const table = [...rows].sort(([a], [b]) => a - b).map(([x, row]) => [x, ...row]);
    this.points = table.length;
    const top = ceiling(table.map(([, ...row]) => row.reduce((sum, ms) => sum + ms, 0)));
    tellCut(this.cut, top);
    this.canvas.setAttribute('aria-label', `Parts of a step of ${run.label}, rank ${rank}, over the steps`);
    // dygraphs stacks the first on top; the bars begin with the first at the left, so here it is at the bottom.
    const stacked = [...parts].reverse();
    this.graph = new Dygraph(this.canvas, table.map(([x, ...row]) => [x, ...row.reverse()]), {
      ...commonOptions(), labels: ['x', ...stacked.map((_, at) => `y${at}`)], colors: stacked.map((part) => partColour(this.parts, part)),
      stackedGraph: true, fillAlpha: 0.9, strokeWidth: 0.5, valueRange: [0, top], dateWindow: windowOfX(),
      axes: {x: xAxis(), y: {axisLabelFormatter: shortNumber, axisLabelWidth: 54}},
      zoomCallback: (from, to) => zoomAll(this.graph.isZoomed('x') ? [from, to] : null),
      highlightCallback: (event, x, points, row) => hoverText(this.hover, event,
          view.byTime ? duration(x) : `step ${whole(x)}`, parts.map((part, column) =>
              [partColour(this.parts, part), partTitle(part), `${few(table[row][column + 1])} ms`]).reverse()),
      unhighlightCallback: () => { this.hover.hidden = true; },
    });
  }

  zoom() {
    this.graph.updateOptions({dateWindow: windowOfX()});
  }
}

function addParts() {
  const parts = allParts();
  if (parts.length === 0) return;
  const plot = new PartsPlot(parts);
  plots.push(plot);
  section('Where the time of a step goes', plot.element);
}
