// The Stack tab's shelf of LoRAs: found and greyed in the browser, so that 500 of them wait for nobody.
//
// Names and triggers are put in as text, never as HTML; a card's picture is HTML of ours (`cards.picture`).
const shelf = element.querySelector('.shelf'), strip = element.querySelector('.shelf-cards');
const find = element.querySelector('.find'), count = element.querySelector('.count');
const ROWS = 6, cards = new Map();
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
  card.note.textContent = item.weight ? `${title} · ${phrase('stack.own_weight', {weight: item.weight})}` : title;
};
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
    strip.replaceChildren(...cards.values());
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
  const first = scene.items.find(item => !cards.get(item.key).hidden);
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
