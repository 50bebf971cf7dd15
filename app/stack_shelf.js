// The Stack tab's shelf of LoRAs: found, sorted and greyed in the browser, so that 500 of them wait for nobody.
//
// Names and triggers are put in as text, never as HTML; a card's picture is HTML of ours (`cards.picture`).
const shelf = element.querySelector('.shelf'), strip = element.querySelector('.shelf-cards');
const find = element.querySelector('.find'), count = element.querySelector('.count');
const sort = element.querySelector('.sort'), SORTED = 'velatura-shelf-sort', ROWS = 6, cards = new Map();
let scene = {items: [], family: '', own: true}, drawn = '';

const make = (tag, className, text = '') => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
};
const fits = item => (!item.family || !scene.family || item.family === scene.family)
  && (item.own === null || item.own === scene.own);
const newCard = item => {
  const card = make('button', 'shelf-card'), words = make('span', 'shelf-words');
  card.type = 'button';
  card.dataset.key = item.key;
  card.innerHTML = item.picture;
  card.note = make('span', 'shelf-note');
  words.append(make('b', 'shelf-name', item.name), make('span', 'shelf-trigger', item.trigger && phrase('item.trigger', {trigger: item.trigger})),
    card.note);
  card.append(words);
  card.title = item.name;
  card.text = `${item.name} ${item.trigger} ${item.title} ${item.words}`.toLowerCase();
  return card;
};
const dress = (card, item) => {
  const fit = fits(item);
  card.classList.toggle('unfit', !fit);
  const title = fit ? item.title : phrase('stack.other_model');
  const weight = item.weight && phrase('stack.own_weight', {weight: item.weight});
  // What it is sorted by comes first, as a card has room for little.
  const counted = {
    used: phraseNum('stack.used', item.used), rating: item.rating && phraseNum('gallery.stars', item.rating),
  }[sort.value];
  card.note.textContent = [counted, title, weight].filter(Boolean).join(' · ');
};

// The order, which this browser keeps. The server sends the newest first; where two are alike that is how they stay.
const ORDERS = {
  newest: () => 0, name: (one, other) => one.name.localeCompare(other.name, undefined, {numeric: true}),
  used: (one, other) => other.used - one.used, rating: (one, other) => other.rating - one.rating,
};
const ordered = () => [...scene.items].sort(ORDERS[sort.value] ?? ORDERS.newest);
const arrange = () => strip.replaceChildren(...ordered().map(item => cards.get(item.key)));
const kept = localStorage.getItem(SORTED);
if (Object.hasOwn(ORDERS, kept ?? '')) sort.value = kept;
sort.addEventListener('change', () => {
  localStorage.setItem(SORTED, sort.value);
  arrange();
  for (const item of scene.items) dress(cards.get(item.key), item);
  strip.scrollLeft = 0;
});
const narrow = () => {
  const parts = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const item of scene.items) {
    const card = cards.get(item.key), has = parts.every(part => card.text.includes(part));
    card.hidden = !has;
    shown += has;
  }
  count.textContent = parts.length ? phrase('dataset.some_of', {num: shown, all: scene.items.length}) : `${scene.items.length}`;
  count.setAttribute('aria-label', phrase('stack.num_loras', {num: shown}));
};
const heard = () => {
  scene = props.value ? JSON.parse(JSON.stringify(props.value)) : scene;  // a copy: to change `props` would call us again
  shelf.hidden = !scene.items.length;
  const now = JSON.stringify(scene.items);
  if (now !== drawn) {
    drawn = now;
    cards.clear();
    for (const item of scene.items) cards.set(item.key, newCard(item));
    arrange();
  }
  for (const item of scene.items) dress(cards.get(item.key), item);
  narrow();
};

// The row that holds a LoRA, and a flash of it.
const rowOf = item => {
  for (let row = 1; row <= ROWS; row++)
    if (document.querySelector(`#lora-${row} input`)?.value === item.label) return row;
  return 0;
};
const flash = row => {
  const group = document.getElementById(`layer-${row}`);
  if (!group) return;
  group.classList.remove('flashed');
  void group.offsetWidth;  // or the animation would not begin again
  group.classList.add('flashed');
  setTimeout(() => group.classList.remove('flashed'), 1200);
  if (window.innerWidth >= 760) group.scrollIntoView({block: 'nearest', behavior: 'smooth'});
};
const put = item => {
  const row = rowOf(item);
  if (row) return flash(row);
  trigger('put', {key: item.key});
  const began = Date.now(), look = () => {
    const filled = rowOf(item);
    if (filled) flash(filled);
    else if (Date.now() - began < 4000) setTimeout(look, 100);
  };
  setTimeout(look, 100);
};
strip.addEventListener('click', event => {
  const key = event.target.closest('[data-key]')?.dataset.key, item = scene.items.find(one => one.key === key);
  if (item) put(item);
});
find.addEventListener('input', narrow);
find.addEventListener('keydown', event => {
  const first = ordered().find(item => !cards.get(item.key).hidden);
  if (event.key === 'Enter' && !event.ctrlKey && !event.metaKey && first) put(first);
});
window.velaturaShelf = {
  family: () => scene.family,
  fit: (base, family) => {
    scene.family = family ?? '';
    scene.own = base === 'imprimatura';
    for (const item of scene.items) dress(cards.get(item.key), item);
  },
};
watch('value', heard);
heard();
