// A chart of losses: a stretch of its steps is dragged out, or chosen by a key or a button; a double press shows all.
// The chart is drawn by the server and put here anew at every look, so that nothing of it is held on to.
const KEYS = {'+': 'in', '=': 'in', '-': 'out', ArrowLeft: 'earlier', ArrowRight: 'later', Home: 'all', Escape: 'all'};
let drag = null, wanted = null, tries = 0, timer = null;
const views = () => [...element.querySelectorAll('.zoomable')];

// What is drawn, and what is shown: what was asked for last, until the server has drawn it.
const drawn = () => {
  const figure = views()[0]?.querySelector('figure');
  return figure && {from: Number(figure.dataset.from), to: Number(figure.dataset.to)};
};
const state = () => {
  const view = views()[0];
  return view && {first: Number(view.dataset.first), last: Number(view.dataset.last), ...drawn(), ...wanted};
};

// Several presses are one asking; what was drawn meanwhile of an older one is asked for once more.
const ask = soon => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const now = state();
    if (!now || !wanted) return;
    const every = wanted.from <= now.first && wanted.to >= now.last;
    trigger('zoomed', every ? {first: null, last: null} : {first: wanted.from, last: wanted.to});
  }, soon);
};
new MutationObserver(changes => {
  const now = drawn();
  if (!wanted || !now || changes.every(({target}) => target.closest?.('svg'))) return;  // what a drag marks
  if (now.from === wanted.from && now.to === wanted.to || ++tries > 4) [wanted, tries] = [null, 0];
  else ask(250);
}).observe(element, {childList: true, subtree: true});

const show = (from, to) => {
  const now = state();
  if (!now) return;
  const width = Math.max(2, Math.min(Math.round(to - from), now.last - now.first));
  from = Math.max(now.first, Math.min(Math.round(from), now.last - width));
  [wanted, tries] = [{from, to: from + width}, 0];
  ask(60);
};

const act = what => {
  const now = state();
  if (!now) return;
  const width = now.to - now.from, middle = (now.from + now.to) / 2, move = Math.max(1, Math.round(width / 4));
  if (what === 'in') show(middle - width / 4, middle + width / 4);
  if (what === 'out') show(middle - width, middle + width);
  if (what === 'earlier') show(now.from - move, now.to - move);
  if (what === 'later') show(now.from + move, now.to + move);
  if (what === 'all') show(now.first, now.last);
};

// Across the chart, in the units of its own drawing, which may be narrower than its box.
const across = (svg, event) =>
  new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
const stepAt = (view, x) => {
  const figure = view.querySelector('figure'), [left, right] = [Number(view.dataset.left), Number(view.dataset.right)];
  const share = Math.max(0, Math.min((x - left) / (right - left), 1));
  return Number(figure.dataset.from) + share * (figure.dataset.to - figure.dataset.from);
};
const mark = (view, from, to) => {
  const svg = view?.querySelector('svg');
  element.querySelectorAll('rect.stretch').forEach(rect => rect.remove());
  if (!svg || from === null) return;
  const rect = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
  const [left, right] = [Number(view.dataset.left), Number(view.dataset.right)];
  const [low, high] = [Math.max(left, Math.min(from, to)), Math.min(right, Math.max(from, to))];
  const place = {x: low, width: Math.max(high - low, 0), y: 12, height: svg.viewBox.baseVal.height - 42};
  for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
  rect.setAttribute('class', 'stretch');
  svg.append(rect);
};

element.addEventListener('pointerdown', event => {
  const svg = event.target.closest('.zoomable svg');
  if (!svg || !event.isPrimary || event.button !== 0) return;
  const view = svg.closest('.zoomable');
  drag = {number: views().indexOf(view), from: across(svg, event), step: stepAt(view, across(svg, event)),
    id: event.pointerId};
});
element.addEventListener('pointermove', event => {
  const view = drag && views()[drag.number], svg = view?.querySelector('svg');
  if (!svg || event.pointerId !== drag.id) return;
  const to = across(svg, event);
  // Held on to once it is a drag: a press, and two of them, are for what they are on.
  if (Math.abs(to - drag.from) > 6 && !element.hasPointerCapture(drag.id)) element.setPointerCapture(drag.id);
  mark(view, drag.from, to);
});
const end = event => {
  if (!drag || event.pointerId !== drag.id) return;
  const view = views()[drag.number], svg = view?.querySelector('svg'), was = drag;
  drag = null;
  mark(null, null, null);
  if (!svg || event.type === 'pointercancel') return;
  const to = across(svg, event), step = stepAt(view, to);
  if (Math.abs(to - was.from) > 6) show(Math.min(was.step, step), Math.max(was.step, step));
};
element.addEventListener('pointerup', end);
element.addEventListener('pointercancel', end);
element.addEventListener('dblclick', event => { if (event.target.closest('.zoomable svg')) act('all'); });
element.addEventListener('velatura-zoom', event => act(event.detail));

// The element stays when the chart is drawn anew, and so does the focus.
element.tabIndex = 0;
element.setAttribute('role', 'group');
element.setAttribute('aria-label', phrase('chart.keys'));
element.addEventListener('keydown', event => {
  if (event.target !== element || event.ctrlKey || event.altKey || event.metaKey) return;
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  act(KEYS[event.key]);
});
