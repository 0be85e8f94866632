'use strict';

let runs = JSON.parse(document.getElementById('data').textContent).runs;
// Which runs are shown, and how.
const view = {shown: runs.map(() => true), smoothing: 0.6, byTime: false, marks: true, window: null};

// An element with attributes and children. Strings become text, never markup.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === 'style') Object.assign(element.style, value);
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Colours of runs and of parts of a step: each at least 3:1 to the background of its theme.
const palettes = {
  light: {
    runs: ['#1f6fd0', '#c2500a', '#0b8261', '#a8307e', '#7a6400', '#6a4bc6', '#c53030', '#4a5568'],
    parts: ['#2f7fdc', '#6a4bc6', '#c2500a', '#0b8a68', '#b08900', '#7b8794', '#a8307e', '#c53030'],
    axis: '#8a94a3', grid: '#e3e7ec',
  },
  dark: {
    runs: ['#6fb1ff', '#ff9d5c', '#3ecfa0', '#f286c8', '#d9c24a', '#b49cff', '#ff8a8a', '#aab8cb'],
    parts: ['#4c93ea', '#9a80ee', '#e08445', '#2fb489', '#cfa83a', '#8793a3', '#d76fb0', '#e57373'],
    axis: '#77818f', grid: '#323b47',
  },
};
const systemIsDark = matchMedia('(prefers-color-scheme: dark)');
const theme = () => document.documentElement.dataset.theme || (systemIsDark.matches ? 'dark' : 'light');
const palette = () => palettes[theme()];
const runColour = (index) => palette().runs[index % palette().runs.length];
// After eight runs colours come again, with other dashes.
const runDash = (index) => [null, [7, 4], [2, 3], [10, 3, 2, 3]][Math.floor(index / 8) % 4];
const rgba = (hex, alpha) =>
    `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(', ')}, ${alpha})`;

const digits = new Intl.NumberFormat('en', {maximumSignificantDigits: 5});
const compact = new Intl.NumberFormat('en', {notation: 'compact', maximumSignificantDigits: 4});
function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(3).replace(/\.?0+e/, 'e');
  return digits.format(value);
}
function shortNumber(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) return value.toExponential(1).replace('.0e', 'e');
  return size < 1e4 ? String(Number(value.toPrecision(4))) : compact.format(value);
}
const whole = (value) => value.toLocaleString('en');
function duration(seconds) {
  if (!(seconds >= 0)) return '–';
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const seriesOf = (run) => Object.entries(run.series);
const stepsOf = (run, series) => run.axes[series.axis];
const lastStep = (run) => run.axes.reduce((last, steps) => Math.max(last, steps[steps.length - 1]), -1);
const afterSlash = (name) => name.slice(name.lastIndexOf('/') + 1);
const swatch = (index) => make('span', {class: 'swatch', 'aria-hidden': 'true', 'data-run': index,
                                        style: {background: runColour(index)}});

// The first place in xs, which ascend, that is not before x; their number when there is none.
function firstFrom(xs, x) {
  let low = 0, high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The seconds of training after which a run was at a step.
function secondsAt(run, step) {
  const steps = stepsOf(run, run.elapsed), seconds = run.elapsed.mean;
  if (steps.length === 0) return 0;
  const after = firstFrom(steps, step);
  if (after === 0) return seconds[0];
  if (after === steps.length) return seconds[after - 1];
  const part = (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
  return seconds[after - 1] + part * (seconds[after] - seconds[after - 1]);
}

function section(title, ...children) {
  const id = title.toLowerCase().replace(/[^a-z]+/g, '-');
  document.getElementById('main').append(
      make('section', {'aria-labelledby': id}, make('h2', {id}, title), ...children));
}
