// The caption's box of the Dataset tab: what is typed there, whose it is, and its tags. A part of `dataset_gallery.js`.
//
// What is typed stays in this tab of the browser until the server says that it is saved: no reload and no server that
// was away loses it. The box is locked from the moment another picture is asked for until that one is there.
const TYPED_MS = 600, UNSAVED = 'velatura-unsaved', VIEW = 'velatura-view', OFFERED_TAGS = 200;
const unsaved = new Map();
let number = Date.now(), timer = 0, visit = '', isTyped = false, awaited = null, numAsked = 0;

const stored = name => { try { return JSON.parse(sessionStorage.getItem(name)); } catch { return null; } };
const store = (name, value) => { try { sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* it is full */ } };
const box = () => document.querySelector('#caption textarea');
const state = text => { const line = document.querySelector('#caption-state .said'); if (line) line.textContent = text; };
const keyOf = ({dataset, name}) => JSON.stringify([dataset, name]);

// What is typed.

for (const typed of [stored(UNSAVED)].flat()) if (typed?.name) unsaved.set(keyOf(typed), typed);
const flush = kind => {
  clearTimeout(timer);
  if (!isTyped) return;
  isTyped = false;
  trigger(kind, {typed: [...unsaved.values()].filter(typed => typed.home === scene.home)});
};
const saved = numbers => {
  for (const [key, typed] of unsaved) if (numbers.includes(typed.number)) unsaved.delete(key);
  store(UNSAVED, [...unsaved.values()]);
  if (unsaved.has(keyOf(opened))) state(phrase('dataset.not_saved'));
};
const typing = text => {
  const typed = {home: scene.home, dataset: opened.dataset, name: opened.name, text, visit, number: ++number};
  unsaved.set(keyOf(typed), typed);
  store(UNSAVED, [...unsaved.values()]);
  isTyped = true;
  const item = opened.dataset === scene.dataset && scene.items.find(one => one.n === opened.name);
  if (item) { item.c = text.trim(); delete item.tags; dressed(cards.get(item.n) ?? newCard(item), item); }
  state(phrase('dataset.not_saved'));
  clearTimeout(timer);
  timer = setTimeout(() => flush('typed'), TYPED_MS);
};
document.addEventListener('input', event => {
  if (!event.target.closest?.('#caption') || !opened.name) return;
  typing(event.target.value);
  ownTags(event.target.value);
});
document.addEventListener('focusin', event => {
  if (event.target.closest?.('#caption')) visit = newVisit();
});
document.addEventListener('focusout', event => { if (event.target.closest?.('#caption')) flush('left'); });
document.addEventListener('visibilitychange', () => { if (document.hidden) flush('left'); });
const write = text => {
  const area = box();
  if (!area || area.readOnly || area.disabled) return;
  visit = newVisit();
  Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(area, text);
  area.dispatchEvent(new Event('input', {bubbles: true}));
  flush('left');
};

// Whose the box is. `awaited` is the picture that was asked for, '' for whichever comes next.

const lock = isLocked => { const area = box(); if (area) area.readOnly = isLocked; };
const awaitPicture = name => {
  awaited = {dataset: scene.dataset, name};
  lock(true);
  state(phrase('dataset.opening'));
};
const isOpened = value => {
  const fresh = value?.name !== opened.name || value?.dataset !== opened.dataset;
  opened = value ? {...value} : opened;
  if (awaited?.name && opened.name && keyOf(opened) !== keyOf(awaited)) return;  // an earlier one: another is on its way
  awaited = null;
  active = opened.name;
  lock(false);
  if (fresh) visit = newVisit();
  if (part('grid').childElementCount) narrow();
  const lost = unsaved.get(keyOf(opened));
  if (fresh && lost && !isTyped && lost.home === scene.home) setTimeout(() => { if (unsaved.has(keyOf(opened))) write(lost.text); }, 500);
  ownTags(opened.shown ?? '');
};
// An answer to what was asked; the picture itself comes a moment before or after it.
const answered = () => setTimeout(() => {
  numAsked = Math.max(0, numAsked - 1);
  if (!awaited || numAsked) return;
  if (awaited.name) state(phrase('dataset.not_opened', {name: awaited.name}));
  awaited = null;
  active = opened.name;
  lock(false);
  narrow();
}, 300);
document.addEventListener('click', event => {
  if (!event.target.closest?.('#delete-picture')) return;
  numAsked++;
  if (opened.name) awaitPicture('');
}, true);

// Its tags.

let ownText = '';
const ownTags = (now = ownText) => {
  ownText = now;
  const holder = document.querySelector('#caption-tags .own-tags'), add = document.querySelector('#caption-tags input');
  if (!holder || !add) return;
  const parts = ownText.split(',').map(tag => tag.trim()).filter(Boolean), tags = [...new Set(parts)];
  add.closest('.tag-line').hidden = !opened.name;
  const at = [...holder.children].indexOf(document.activeElement);
  holder.replaceChildren(...tags.map(tag => {
    const made = button('chip', tag, () => write(parts.filter(one => one.toLowerCase() !== tag.toLowerCase()).join(', ')));
    made.append(make('b', '', '×'));
    made.setAttribute('aria-label', phrase('dataset.remove_tag', {tag}));
    return made;
  }));
  if (at >= 0) (holder.children[Math.min(at, tags.length - 1)] ?? add).focus();
};
document.addEventListener('keydown', event => {
  const add = event.target.closest?.('#caption-tags input'), area = box();
  if (!add || event.key !== 'Enter' || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  event.preventDefault();
  const tag = add.value.trim(), has = area.value.split(',').some(one => one.trim().toLowerCase() === tag.toLowerCase());
  if (tag && !has) write([area.value.trim().replace(/,$/, ''), tag].filter(Boolean).join(', '));
  add.value = '';
});
document.addEventListener('focusin', event => {
  const list = event.target.closest?.('#caption-tags')?.querySelector('datalist');
  if (!list || !event.target.matches('input')) return;
  const counts = new Map();
  for (const item of scene.items) for (const tag of tagsOf(item)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  const common = [...counts].sort((one, other) => other[1] - one[1]).slice(0, OFFERED_TAGS);
  list.replaceChildren(...common.map(([tag]) => Object.assign(make('option'), {value: tag})));
});

// What is open and filtered comes back when the page is loaded again.

let isBack = false;
const keepView = () => {
  if (!scene.dataset || !isBack) return;
  const {kind, tags, find, names, title, bucket} = filter;
  const kept = {kind, find, title, bucket, tags: [...tags], names: names && [...names]};
  store(VIEW, {home: scene.home, dataset: scene.dataset, name: opened.dataset === scene.dataset ? opened.name : '', kept});
};
// The name of the picture that was open.
const takeView = () => {
  if (!scene.dataset || isBack) return '';
  isBack = true;
  if (unsaved.size) { isTyped = true; flush('left'); }
  const view = stored(VIEW);
  if (view?.home !== scene.home || view?.dataset !== scene.dataset) return '';
  filter = {...everything(), ...view.kept, tags: new Set(view.kept.tags), names: view.kept.names && new Set(view.kept.names)};
  part('find').value = filter.find;
  return view.name;
};
window.velaturaDataset = {targets, cure, flip, changed, shapes, opened: isOpened, answered, saved};
watch('value', heard);
heard();
