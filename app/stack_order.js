// A handle on each of the Stack tab's rows, by which it is dragged to another place; Alt and an arrow do the same.
// The rows are Gradio's and come and go, so the handles are put back whenever they are missing.
const said = element.querySelector('.order-said');
const rows = () => [...document.querySelectorAll('.layer-all[id^="layer-"]')].filter(row => row.offsetParent);
const number = row => Number(row.id.replace('layer-', '')) - 1;
const waiting = [];
let busy = null, focusOn = null, drag = null;

const grips = () => {
  for (const row of rows()) {
    const tools = row.querySelector('.layer-tools');
    if (!tools || tools.querySelector('.grip')) continue;
    const grip = document.createElement('span');
    grip.className = 'grip';
    grip.textContent = '⠿';
    grip.tabIndex = 0;
    grip.setAttribute('role', 'button');
    grip.setAttribute('aria-label', phrase('stack.move', {number: number(row) + 1}));
    grip.title = phrase('stack.move_help');
    tools.prepend(grip);
  }
  if (focusOn !== null) {
    const grip = document.querySelector(`#layer-${focusOn + 1} .grip`);
    if (grip) { grip.focus(); focusOn = null; }
  }
};

// One move after the other: the next is of what the one before made.
const release = () => {
  clearTimeout(busy);
  busy = null;
  if (waiting.length) send(...waiting.shift());
};
const send = (from, to) => {
  if (busy !== null) { waiting.push([from, to]); return; }
  busy = setTimeout(release, 8000);  // no answer comes when the connection was lost
  trigger('moved', {from, to});
};
watch('value', () => {
  said.textContent = props.value?.text ?? '';
  release();
});

// By keyboard: wherever the focus is in a row, but for boxes in which text is typed.
let at = null;  // where the row that is being moved will stand, while answers are on their way
const onKey = event => {
  const row = event.target.closest?.('.layer-all');
  const step = {ArrowUp: -1, ArrowDown: 1}[event.key];
  if (drag && event.key === 'Escape') { drop(null); return; }
  if (!row || !step || !event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.matches('textarea, input:not([type=range]):not([type=checkbox])')) return;
  event.preventDefault();
  const from = busy !== null && at !== null ? at : number(row), to = from + step;
  if (to < 0 || to >= rows().length) return;
  at = focusOn = to;
  send(from, to);
  grips();
};

// By mouse, pen or finger.
const place = y => {
  const shown = rows(), above = shown.filter(row => {
    const box = row.getBoundingClientRect();
    return box.top + box.height / 2 < y;
  }).length;
  return above > drag.from ? above - 1 : above;
};
const mark = () => {
  const shown = rows();
  shown.forEach((row, index) => {
    row.classList.toggle('lifted', index === drag.from);
    row.classList.toggle('drop-above', index === drag.to && drag.to < drag.from);
    row.classList.toggle('drop-below', index === drag.to && drag.to > drag.from);
  });
};
const drop = to => {
  const {from, grip, pointer} = drag;
  drag = null;
  if (grip.hasPointerCapture?.(pointer)) grip.releasePointerCapture(pointer);
  for (const row of rows()) row.classList.remove('lifted', 'drop-above', 'drop-below');
  if (to === null || to === from) return;
  at = focusOn = to;
  send(from, to);
  grips();  // the handle of its new place
};
const onDown = event => {
  const grip = event.target.closest?.('.grip');
  if (!grip || event.button > 0 || drag || busy !== null) return;
  event.preventDefault();
  grip.focus();
  const from = rows().indexOf(grip.closest('.layer-all'));
  if (from < 0) return;
  drag = {grip, from, to: from, pointer: event.pointerId};
  grip.setPointerCapture(event.pointerId);
  mark();
};
const onMove = event => {
  if (!drag || event.pointerId !== drag.pointer) return;
  drag.to = place(event.clientY);
  mark();
};
const onUp = event => { if (drag && event.pointerId === drag.pointer) drop(drag.to); };
const onCancel = event => { if (drag && event.pointerId === drag.pointer) drop(null); };
const listeners = [['keydown', onKey], ['pointerdown', onDown], ['pointermove', onMove], ['pointerup', onUp],
  ['pointercancel', onCancel]];
for (const [kind, act] of listeners) document.addEventListener(kind, act);

let due = false;
new MutationObserver(() => {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; grips(); });
}).observe(document.getElementById('tab-stack') ?? document.body, {childList: true, subtree: true});
grips();
