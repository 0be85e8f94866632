// Curves over the steps: what a plot holds, and drawing it with dygraphs.

const titles = new Map([
  ['loss', 'Loss'], ['accuracy', 'Accuracy'], ['lr', 'Learning rate'], ['grad_norm', 'Gradient norm'],
  ['samples_per_second', 'Throughput (samples/s)'], ['step_ms', 'Time of a step (ms)'], ['memory', 'Memory (MB)'],
]);
// What is noise from step to step; a learning rate is not.
const noisy = new Set(['loss', 'grad_norm', 'samples_per_second', 'step_ms']);
const partName = /^perf\/rank(\d+)\/(.+)_ms$/s;
const isPart = (name) => partName.test(name);
const plotOf = (name) => name.startsWith('memory/') ? 'memory' : afterSlash(name);

// Names of one plot: train/loss and eval/loss are in the same. Known plots first, the others by name.
function plotsOf(allRuns) {
  const plots = new Map([...titles.keys()].map((key) => [key, new Set()]));
  const names = new Set(allRuns.flatMap((run) => seriesOf(run).map(([name]) => name)).filter((name) => !isPart(name)));
  // Training before evaluation: the first of a plot is drawn solid.
  const isTraining = (name) => name.startsWith('train/');
  for (const name of [...names].sort((a, b) => isTraining(b) - isTraining(a) || (a < b ? -1 : 1))) {
    const key = plotOf(name);
    if (!plots.has(key)) plots.set(key, new Set());
    plots.get(key).add(name);
  }
  return [...plots].filter(([, members]) => members.size > 0).map(([key, members]) => ({
    title: titles.get(key) || key, names: [...members], isKnown: titles.has(key), isNoisy: noisy.has(key),
    isTime: key === 'step_ms',
  }));
}

// Where to cut the top of a plot of times off, so that a slow first step does not flatten all others; null: nowhere.
function ceiling(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  const usual = sorted[Math.floor(0.98 * (sorted.length - 1))];
  return sorted.length >= 50 && sorted[sorted.length - 1] > 2 * usual ? 1.5 * usual : null;
}
function tellCut(element, top) {
  element.textContent = top === null ? '' : `cut at ${top.toPrecision(2)}`;
  element.title = 'A few steps took longer: the plot leaves their peaks out';
}

const nameDashes = [null, [6, 3], [2, 2], [10, 3, 2, 3]];
const marker = (values) => values.length <= 60;  // few points are shown as such

// Averages with those before, weighted less the longer ago; unbiased at the start.
function smoothed(values, weight) {
  let sum = 0, weights = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    weights = weight * weights + (1 - weight);
    return sum / weights;
  });
}

// The curves of a plot: one for each run that is shown and each name that it has.
function curvesOf(plot) {
  const curves = [];
  runs.forEach((run, index) => {
    plot.names.forEach((name, position) => {
      if (!view.shown[index] || !Object.hasOwn(run.series, name)) return;
      const series = run.series[name], steps = stepsOf(run, series);
      const xs = view.byTime ? steps.map((step) => secondsAt(run, step)) : steps;
      const dash = nameDashes[position % 4] || runDash(index);
      const curve = {index, name, steps, xs, dash, values: series.mean, low: series.low, high: series.high,
                     raw: series.mean, colour: runColour(index)};
      // Smoothing five evaluations would only hide them.
      if (plot.isNoisy && view.smoothing > 0 && !marker(series.mean)) curve.values = smoothed(series.mean, view.smoothing);
      curves.push(curve);
    });
  });
  return curves;
}

// What is larger overflows in dygraphs.
const canShow = (value) => value !== null && Math.abs(value) < 1e100;

// Columns for dygraphs, [low, value, high] each: all curves in one table by x. What was smoothed gets its own values as a
// faint column of its own.
function tableOf(curves) {
  const columns = curves.flatMap((curve) => curve.values === curve.raw ? [{curve, values: curve.raw, faint: false}] :
      [{curve, values: curve.raw, faint: true}, {curve, values: curve.values, faint: false}]);
  const rows = new Map();
  columns.forEach(({curve, values, faint}, column) => {
    const band = curve.low && (faint || values === curve.raw);
    curve.xs.forEach((x, at) => {
      if (!rows.has(x)) rows.set(x, new Array(columns.length).fill(null));
      const value = canShow(values[at]) ? values[at] : NaN;
      rows.get(x)[column] = band && canShow(values[at]) ? [curve.low[at], value, curve.high[at]] : [value, value, value];
    });
  });
  const table = [...rows].sort(([a], [b]) => a - b).map(([x, row]) => [x, ...row]);
  const series = {};
  columns.forEach(({curve, faint}, column) => {
    series[`y${column}`] = {
      color: rgba(curve.colour, faint ? 0.3 : 1), strokeWidth: faint ? 1 : 1.8, strokePattern: faint ? null : curve.dash,
      drawPoints: marker(curve.raw), pointSize: 2.5, highlightCircleSize: faint ? 0 : 3.5,
    };
  });
  return {table, labels: ['x', ...columns.map((_, column) => `y${column}`)], series};
}

// The same stretch for all plots: what is zoomed to, else all that the shown runs have.
function windowOfX() {
  if (view.window) return view.window;
  const ends = runs.filter((_, index) => view.shown[index]).flatMap((run) => run.axes.flatMap((steps) =>
      steps.length === 0 ? [] : [steps[0], steps[steps.length - 1]].map((step) => view.byTime ? secondsAt(run, step) : step)));
  if (ends.length === 0) return [0, 1];
  const first = Math.min(...ends), last = Math.max(...ends), margin = 0.012 * (last - first) || 1;
  return [first - margin, last + margin];
}

// Vertical lines where something happened.
function marksOf() {
  if (!view.marks) return [];
  return runs.flatMap((run, index) => view.shown[index] ? run.events.map((event) => (
      {...event, index, x: view.byTime ? secondsAt(run, event.step) : event.step})) : []);
}

function drawMarks(canvas, area, graph) {
  canvas.save();
  const drawn = new Map();  // the x of the last line of a run and a name: many would be a haze
  for (const mark of marksOf()) {
    const x = Math.round(graph.toDomXCoord(mark.x)) + 0.5, kind = `${mark.index} ${mark.name}`;
    if (x < area.x || x > area.x + area.w || Math.abs(x - drawn.get(kind)) < 5) continue;
    drawn.set(kind, x);
    canvas.strokeStyle = canvas.fillStyle = runColour(mark.index);
    canvas.globalAlpha = mark.name === 'checkpoint' ? 0.45 : 0.9;
    canvas.lineWidth = mark.name === 'checkpoint' ? 1 : 1.5;
    canvas.setLineDash(mark.name === 'checkpoint' ? [2, 4] : [6, 3]);
    canvas.beginPath();
    canvas.moveTo(x, area.y);
    canvas.lineTo(x, area.y + area.h);
    canvas.stroke();
    canvas.beginPath();
    canvas.moveTo(x - 4, area.y);
    canvas.lineTo(x + 4, area.y);
    canvas.lineTo(x, area.y + 6);
    canvas.fill();
  }
  canvas.restore();
}

// The place in xs, which ascend, that is nearest to x.
function nearest(xs, x) {
  const after = Math.min(firstFrom(xs, x), xs.length - 1);
  return after > 0 && x - xs[after - 1] < xs[after] - x ? after - 1 : after;
}

// One finger scrolls the page, two zoom.
const interaction = {
  ...Dygraph.defaultInteractionModel,
  touchstart: (event, graph, context) => {
    if (event.touches.length > 1) Dygraph.defaultInteractionModel.touchstart(event, graph, context);
  },
  touchmove: (event, graph, context) => {
    if (event.touches.length > 1) Dygraph.defaultInteractionModel.touchmove(event, graph, context);
  },
};

const commonOptions = () => ({
  legend: 'never', animatedZooms: false, interactionModel: interaction, gridLineColor: palette().grid,
  axisLineColor: palette().axis, axisLabelFontSize: 12, rightGap: 12, yRangePad: 6, hideOverlayOnMouseOut: true,
  connectSeparatedPoints: true,
});
const xAxis = () => ({axisLabelFormatter: (x) => view.byTime ? duration(x) : shortNumber(x), pixelsPerLabel: 56});

// Shows beside the pointer what is there: lines of a colour and texts, which form columns.
function hoverText(box, event, heading, lines) {
  box.replaceChildren(make('strong', {}, heading), make('div', {class: 'lines'}, ...lines.map(([colour, ...texts]) => make('div', {},
      make('span', {class: 'swatch', style: {background: colour}}), ...texts.map((text) => make('span', {}, text))))));
  box.hidden = false;
  const size = box.getBoundingClientRect(), isRight = event.clientX + 16 + size.width > innerWidth;
  box.style.left = `${Math.max(4, isRight ? event.clientX - 16 - size.width : event.clientX + 16)}px`;
  box.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - size.height - 4))}px`;
}

const few = (value) => value === null ? '–' : number(Number(value.toPrecision(4)));
const bandText = (curve, at) => curve.low && curve.low[at] !== curve.high[at] ?
    `${few(curve.low[at])} to ${few(curve.high[at])}` : curve.values === curve.raw ? '' : few(curve.raw[at]);

function describe(plot, curves) {
  const last = curves.map((curve) => `${runs[curve.index].label} ${curve.name}: ` +
      `${number(curve.raw[curve.raw.length - 1])} at step ${whole(curve.steps[curve.steps.length - 1])}`);
  return `${plot.title}. ${last.slice(0, 12).join('; ') || 'No run is shown'}`;
}

// A plot with its frame, drawn again with `draw` whenever the view changes.
class CurvePlot {
  constructor(plot) {
    this.plot = plot;
    this.logarithmic = false;
    this.canvas = make('div', {class: 'plot', role: 'img'});
    this.hover = make('div', {class: 'hover', hidden: true});
    this.cut = make('span', {class: 'aside cut'});
    this.log = make('button', {type: 'button', class: 'small', 'aria-pressed': 'false',
                                title: 'logarithmic scale', onclick: () => {
      this.logarithmic = !this.logarithmic;
      this.draw();
    }}, 'log');
    this.element = make('figure', {class: 'curve'},
        make('figcaption', {}, make('b', {}, plot.title), this.names(), this.cut, this.log),
        make('div', {class: 'frame'}, this.canvas, this.hover));
  }

  names() {
    const {names} = this.plot;
    if (names.length === 1) return make('span', {class: 'names only', title: names[0]}, names[0]);
    return make('span', {class: 'names'},
        ...names.map((name, position) => make('span', {}, lineSample(nameDashes[position % 4]), name)));
  }

  draw() {
    if (this.graph) this.graph.destroy();
    this.curves = curvesOf(this.plot);
    const {table, labels, series} = tableOf(this.curves);
    this.points = table.length;
    this.canvas.setAttribute('aria-label', describe(this.plot, this.curves));
    if (table.length === 0) {
      this.graph = null;
      this.canvas.replaceChildren(make('p', {class: 'empty'}, 'nothing to show'));
      return;
    }
    const hasLogarithms = table.some(([, ...points]) => points.some((point) => point !== null && point[1] > 0));
    this.log.disabled = !hasLogarithms;
    this.logarithmic = this.logarithmic && hasLogarithms;
    this.log.setAttribute('aria-pressed', String(this.logarithmic));
    const top = this.plot.isTime && !this.logarithmic ? ceiling(this.curves.flatMap((curve) => curve.high || curve.raw)) : null;
    tellCut(this.cut, top);
    this.graph = new Dygraph(this.canvas, table, {
      ...commonOptions(), labels, series, customBars: true, fillAlpha: 0.18, logscale: this.logarithmic,
      valueRange: top && [0, top], dateWindow: windowOfX(), underlayCallback: drawMarks,
      axes: {x: xAxis(), y: {axisLabelFormatter: shortNumber, axisLabelWidth: 54}},
      zoomCallback: (from, to) => zoomAll(this.graph.isZoomed('x') ? [from, to] : null),
      highlightCallback: (event, x) => this.showValues(event, x),
      unhighlightCallback: () => { this.hover.hidden = true; },
    });
  }

  showValues(event, x) {
    const [from, to] = this.graph.xAxisRange();
    const lines = this.curves.map((curve) => [curve, nearest(curve.xs, x)])
        .filter(([curve, at]) => Math.abs(curve.xs[at] - x) <= 0.015 * (to - from))
        .map(([curve, at]) => [curve.colour, runs.length > 1 ? runs[curve.index].label : '',
                               this.plot.names.length > 1 ? curve.name : '', few(curve.values[at]), bandText(curve, at)]);
    const here = this.graph.toDomXCoord(x);
    for (const mark of marksOf())
      if (Math.abs(this.graph.toDomXCoord(mark.x) - here) < 5)
        lines.push([runColour(mark.index), mark.name, mark.detail, `step ${whole(mark.step)}`, '']);
    hoverText(this.hover, event, view.byTime ? duration(x) : `step ${whole(x)}`, lines);
  }

  zoom() {
    if (this.graph) this.graph.updateOptions({dateWindow: windowOfX()});
  }
}

function lineSample(dash) {
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  line.setAttribute('class', 'line');
  line.setAttribute('viewBox', '0 0 24 4');
  line.setAttribute('aria-hidden', 'true');
  const path = line.appendChild(document.createElementNS('http://www.w3.org/2000/svg', 'path'));
  path.setAttribute('d', 'M0 2H24');
  if (dash) path.setAttribute('stroke-dasharray', dash.join(' '));
  return line;
}

const plots = [];

function zoomAll(window) {
  view.window = window;
  plots.forEach((plot) => plot.zoom());
  document.getElementById('unzoom').hidden = window === null;
}

function addCurves() {
  const all = plotsOf(runs).map((plot) => new CurvePlot(plot));
  plots.push(...all);
  const grid = (some) => make('div', {class: 'curves'}, ...some.map((plot) => plot.element));
  const known = all.filter((plot) => plot.plot.isKnown), others = all.filter((plot) => !plot.plot.isKnown);
  if (all.length === 0) return section('Curves', make('p', {class: 'empty'}, 'No values have been logged yet.'));
  if (others.length <= 3) return section('Curves', grid(all));
  if (known.length > 0) section('Curves', grid(known));
  section('Other values', grid(others));
}
