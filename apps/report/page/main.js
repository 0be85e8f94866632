// Builds the page and reacts to its controls.

function redraw() {
  document.querySelectorAll('.swatch[data-run]').forEach((element) => {
    element.style.background = runColour(Number(element.dataset.run));
  });
  document.querySelectorAll('article[data-run]').forEach((element) => {
    element.hidden = !view.shown[Number(element.dataset.run)];
    element.style.setProperty('--run', runColour(Number(element.dataset.run)));
  });
  plots.forEach((plot) => plot.draw());
  // For whoever checks the page: plots, and places on the x axes that hold a value.
  Object.assign(document.documentElement.dataset,
      {plots: plots.length, points: plots.reduce((sum, plot) => sum + plot.points, 0)});
}

function runChoices() {
  return make('fieldset', {class: 'runs'}, make('legend', {}, 'Runs'), ...runs.map((run, index) => {
    const box = make('input', {type: 'checkbox', checked: view.shown[index], onchange: () => {
      view.shown[index] = box.checked;
      redraw();
    }});
    return make('label', {title: run.directory}, box, swatch(index), run.label);
  }));
}

function smoothingSlider() {
  const told = make('output', {}, String(view.smoothing));
  const slider = make('input', {type: 'range', min: 0, max: 0.99, step: 0.01, value: view.smoothing, oninput: () => {
    view.smoothing = Number(slider.value);
    told.textContent = slider.value;
    redraw();
  }});
  return make('label', {}, 'Smoothing', slider, told);
}

function axisChoice() {
  const select = make('select', {onchange: () => {
    view.byTime = select.value === 'time';
    zoomAll(null);
    redraw();
  }}, make('option', {value: 'step'}, 'step'),
      make('option', {value: 'time', selected: view.byTime}, 'time of training'));
  return make('label', {}, 'Along', select);
}

function marksChoice() {
  const box = make('input', {type: 'checkbox', checked: view.marks, onchange: () => {
    view.marks = box.checked;
    redraw();
  }});
  return make('label', {}, box, 'checkpoints and resumes');
}

function addControls() {
  const hasEvents = runs.some((run) => run.events.length > 0);
  document.getElementById('controls').append(runChoices(), make('div', {class: 'settings'}, smoothingSlider(), axisChoice(),
      hasEvents ? marksChoice() : null,
      make('button', {type: 'button', id: 'unzoom', hidden: view.window === null, onclick: () => zoomAll(null)}, 'All steps'),
      make('span', {class: 'aside'}, 'Drag across a plot to zoom')));
}

function addTheme() {
  const button = document.getElementById('theme');
  const tell = () => { button.textContent = theme() === 'dark' ? 'Light' : 'Dark'; };
  button.addEventListener('click', () => {
    document.documentElement.dataset.theme = theme() === 'dark' ? 'light' : 'dark';
    tell();
    redraw();
  });
  systemIsDark.addEventListener('change', () => {
    tell();
    redraw();
  });
  tell();
}

function build() {
  document.title = `${runs.map((run) => run.label).join(', ')} – Tandem report`;
  document.getElementById('subtitle').textContent = runs.length === 1 ?
      `${runs[0].label}, in ${runs[0].directory}` : `${runs.length} runs`;
  addControls();
  addFigures();
  addCurves();
  addParts();
  addMedia();
  addConfiguration();
  addNotes();
  redraw();
}

// Shows the runs as they are now, in the view that there is.
function update(newRuns) {
  const scrolled = scrollY;
  plots.forEach((plot) => plot.graph && plot.graph.destroy());
  plots.length = 0;
  document.getElementById('controls').replaceChildren();
  document.getElementById('main').replaceChildren();
  runs = newRuns;
  build();
  scrollTo(0, scrolled);
}

// A page that tandem report --follow serves asks for what is new, until all runs have ended. An answer comes when there
// is something.
async function follow(version) {
  const told = document.getElementById('follow');
  const isGoingOn = () => runs.some((run) => !run.status);
  for (let updates = 0; isGoingOn();) {
    told.textContent = 'Follows the run';
    try {
      const answer = await fetch(`data?after=${version}`);
      if (answer.status === 200) {
        const news = await answer.json();
        version = news.version;
        update(news.runs);
        document.documentElement.dataset.updates = ++updates;
      }
    } catch (error) {
      told.textContent = 'tandem report --follow does not answer';
      await new Promise((resolve) => { setTimeout(resolve, 3000); });
    }
  }
  told.textContent = '';
}

addTheme();
build();
if (document.documentElement.dataset.follow) follow(document.documentElement.dataset.follow);
