// Confusion matrices, images, histograms and texts: a block for each run that has some.

// What a run logged of a kind, as elements that come and go with the run.
function blocks(run, index, key, draw) {
  return run[key].map((entry) => make('article', {'data-run': index, class: 'block'},
      make('h3', {}, swatch(index), `${runs.length > 1 ? `${run.label}, ` : ''}${entry.name}`,
           entry.step === undefined ? null : make('span', {class: 'aside'}, ` step ${whole(entry.step)}`)),
      draw(entry)));
}

function addBlocks(title, kinds, className) {
  const all = runs.flatMap((run, index) => kinds.flatMap(([key, draw]) => blocks(run, index, key, draw)));
  if (all.length > 0) section(title, make('div', {class: className}, ...all));
}

// A cell's colour: how much of its row's total it is. Root, so that few errors are seen.
function heat(value, total, right) {
  const share = total > 0 ? Math.sqrt(value / total) : 0;
  const strength = right ? 0.55 * share : Math.min(1, 2 * share) * 0.75;
  return value > 0 ? `rgba(var(--${right ? 'heat' : 'wrong'}), ${strength.toFixed(3)})` : 'transparent';
}

function matrixTable(matrix) {
  const size = matrix.values ? matrix.values.length : 0;
  const label = (at) => matrix.labels[at] || String(at);
  const head = make('tr', {}, make('th', {scope: 'col', class: 'corner'}, 'true \\ taken for'),
      ...Array.from({length: size}, (_, at) => make('th', {scope: 'col'}, label(at))));
  const rows = (matrix.values || []).map((row, at) => {
    const total = row.reduce((sum, value) => sum + (value || 0), 0);
    return make('tr', {}, make('th', {scope: 'row'}, label(at)), ...row.map((value, other) => make('td', {
      class: value === 0 ? 'zero' : null, style: {background: heat(value || 0, total, at === other)},
      title: `true ${label(at)}, taken for ${label(other)}: ${number(value)} of ${number(total)}`}, number(value))));
  });
  const right = (matrix.values || []).reduce((sum, row, at) => sum + row[at], 0);
  const all = (matrix.values || []).reduce((sum, row) => row.reduce((part, value) => part + value, sum), 0);
  return make('div', {}, make('div', {class: 'scroll'}, make('table', {class: 'matrix'},
      make('caption', {}, `${number(right)} of ${number(all)} right; rows: true class, columns: what it was taken for`),
      make('thead', {}, head), make('tbody', {}, ...rows))));
}

function imageGrid(set) {
  return make('div', {class: 'images'}, ...(set.items || []).map((item) => make('figure', {},
      make('img', {src: `data:image/png;base64,${item.png}`, alt: item.caption || 'without a caption'}),
      make('figcaption', {}, item.caption))));
}

const svg = (tag, attributes) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

function histogramBars(histogram) {
  const {edges, counts} = histogram;
  const first = edges[0], width = edges[edges.length - 1] - first || 1;
  // Bins may differ in width: it is the area that shows the count.
  const heights = counts.map((count, at) => count / (edges[at + 1] - edges[at] || width / counts.length));
  const highest = Math.max(...heights) || 1;
  const picture = svg('svg', {viewBox: '0 0 400 120', preserveAspectRatio: 'none', class: 'bins', role: 'img',
      'aria-label': `Histogram from ${number(first)} to ${number(first + width)}, ${counts.length} bins`});
  heights.forEach((height, at) => {
    const bin = svg('rect', {x: 400 * (edges[at] - first) / width, width: Math.max(0.5, 400 * (edges[at + 1] - edges[at]) / width - 0.5),
                             y: 120 - 118 * height / highest, height: 118 * height / highest});
    bin.append(svg('title', {}));
    bin.firstChild.textContent = `${number(edges[at])} to ${number(edges[at + 1])}: ${number(counts[at])}`;
    picture.append(bin);
  });
  return [picture, make('p', {class: 'ends'}, make('span', {}, number(first)), make('span', {}, number(first + width)))];
}

// The last one first; a slider leads to those before.
function histogramBlock(entry) {
  const place = make('div', {});
  const told = make('output', {});
  const show = (at) => {
    told.textContent = `step ${whole(entry.steps[at].step)}`;
    place.replaceChildren(...histogramBars(entry.steps[at]));
  };
  const slider = make('input', {type: 'range', min: 0, max: entry.steps.length - 1, 'aria-label': `step of ${entry.name}`,
                                oninput: () => show(Number(slider.value))});
  slider.value = entry.steps.length - 1;
  if (entry.steps.length > 0) show(entry.steps.length - 1);
  return make('div', {}, place, make('p', {class: 'slider'}, entry.steps.length > 1 ? slider : null, told));
}

function addMedia() {
  addBlocks('Confusion matrix and images', [['matrices', matrixTable], ['images', imageGrid]], 'wide-blocks');
  addBlocks('Histograms', [['histograms', histogramBlock]], 'small-blocks');
  addBlocks('Texts', [['texts', (entry) => make('pre', {}, entry.text)]], 'wide-blocks');
}
