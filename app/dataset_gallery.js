// The Dataset tab's gallery: filters, marks and keys, all in the browser, so that none waits for the server.
//
// Whatever comes from the set (names, captions, tags) is put in as text, never as HTML. The server is told what was
// done by `trigger`; it looks every name up itself.
const root = element.querySelector('.pictures');
const SHOWN_TAGS = 18, LOOK_MS = 4000;
let scene = {dataset: '', home: '', items: [], trash: [], reasons: [], kinds: [], shapes: [], resolution: 0};
let opened = {dataset: '', name: '', shown: ''};
const everything = () => ({kind: 'all', tags: new Set(), find: '', names: null, title: '', bucket: ''});
let filter = everything(), active = '', anchor = '', lookTimer = 0, looked = 0, allTags = false;
const marked = new Set(), cards = new Map();

const make = (tag, className = '', text = '') => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== '') made.textContent = text;
  return made;
};
const button = (className, text, act) => {
  const made = make('button', className, text);
  made.type = 'button';
  made.addEventListener('click', act);
  return made;
};
const part = name => root.querySelector(`.${name}`);
const newVisit = () => `${Date.now()}-${Math.random().toString(36).slice(2)}`;
const tagsOf = item => item.tags ??= [...new Set(item.c.split(',').map(tag => tag.trim()).filter(Boolean))];
const bucketOf = item => item.k?.length ? item.k.join(' × ') : '';
const inTrash = () => filter.kind === 'trash';
const all = () => inTrash() ? scene.trash : scene.items;

// What is shown.

const fits = item => {
  if (inTrash()) return true;
  if (filter.names) return filter.names.has(item.n);
  if (filter.bucket && bucketOf(item) !== filter.bucket) return false;
  if (filter.kind !== 'all' && !item.f.includes(filter.kind)) return false;
  for (const tag of filter.tags) if (!tagsOf(item).includes(tag)) return false;
  return !filter.find || `${item.l} ${item.c}`.toLowerCase().includes(filter.find);
};
const order = item => filter.kind === 'double' ? item.g * 100000 + item.i : item.i;
const visible = () => all().filter(item => fits(item) || item.n === active && !inTrash())
  .sort((one, other) => order(one) - order(other));
// Only what is seen is acted on: a mark that a filter hides waits until it is shown again.
const chosen = () => visible().filter(item => marked.has(item.n)).map(item => item.n);
const chosenOrActive = () => { const names = chosen(); return names.length || !active ? names : [active]; };
const targets = () => marked.size ? chosen() : visible().filter(fits).map(item => item.n);

const dressed = (card, item) => {
  card.open.setAttribute('aria-label', `${item.l}: ${item.c || phrase('dataset.no_caption_yet')}`);
  card.open.title = item.l;
  card.text.textContent = item.c.replace(/\s+/g, ' ') || (inTrash() ? item.l : phrase('dataset.no_caption_yet'));
  card.text.classList.toggle('missing', !item.c && !inTrash());
  card.badges.replaceChildren(...item.b.map(word => make('span', 'badge', word)));
  card.box.setAttribute('aria-label', phrase('dataset.mark', {picture: item.l}));
  if (item.s && card.image.getAttribute('src') !== item.s) card.image.src = item.s;
  card.image.hidden = item.f.includes('broken') || !card.image.hasAttribute('src');  // the old one until there is a new
};
const newCard = item => {
  const card = make('div', 'card');
  card.open = button('thumbnail-item', '', event => clicked(event, item.n));
  card.image = make('img');
  card.image.alt = '';
  card.image.loading = 'lazy';
  card.badges = make('span', 'badges');
  card.text = make('span', 'words');
  card.box = make('input');
  card.box.type = 'checkbox';
  card.box.addEventListener('change', () => { mark(item.n, card.box.checked); anchor = item.n; marks(); });
  card.open.append(card.image, card.badges, card.text);
  card.append(card.open, card.box);
  return card;
};
const draw = () => {
  const grid = part('grid'), here = new Set(), prefix = inTrash() ? 'trash ' : '';
  for (const item of all()) {
    const key = prefix + item.n;
    here.add(key);
    if (!cards.has(key)) { cards.set(key, newCard(item)); grid.append(cards.get(key)); }
    dressed(cards.get(key), item);
  }
  for (const [key, card] of cards) if (!here.has(key)) { card.remove(); cards.delete(key); }
  for (const name of [...marked]) if (!here.has(prefix + name)) marked.delete(name);
  narrow();
};
const narrow = () => {
  const shown = new Set(visible().map(item => item.n));
  for (const item of all()) {
    const card = cards.get((inTrash() ? 'trash ' : '') + item.n);
    card.hidden = !shown.has(item.n);
    card.style.order = order(item);
  }
  part('empty').hidden = shown.size > 0 || !scene.dataset;
  chips(); marks(); keepView();
};
const marks = () => {
  const prefix = inTrash() ? 'trash ' : '';
  for (const item of all()) {
    const card = cards.get(prefix + item.n);
    card.box.checked = marked.has(item.n);
    card.classList.toggle('marked', marked.has(item.n));
    card.open.setAttribute('aria-current', !inTrash() && item.n === active);
  }
  const count = visible().filter(fits).length, of = all().length, now = chosen().length, hidden = marked.size - now;
  const what = filter.title || (inTrash() ? phrase('dataset.in_trash') : '');
  const num = count === of ? phraseNum('dataset.pictures', of) : phrase('dataset.some_of', {num: count, all: of});
  part('count').textContent = `${what ? `${what}: ` : ''}${num}`
    + (now ? phrase('dataset.num_marked', {num: now}) : '')
    + (hidden ? phrase('dataset.num_marked_hidden', {num: hidden}) : '')
    + (scene.pending ? phrase('dataset.looking', {num: scene.pending}) : '');
  part('unmark').disabled = !marked.size;
  part('everything').disabled = !count;
  part('mirror').hidden = part('discard').hidden = inTrash();
  part('mirror').disabled = part('discard').disabled = !now;
  part('restore').hidden = !inTrash();
  part('restore').disabled = !of;
  part('restore').textContent = marked.size ? phrase('button.restore') : phrase('dataset.restore_all');
};
const chip = (text, count, pressed, act) => {
  const made = button('chip', text, act);
  made.append(make('b', '', String(count)));
  made.setAttribute('aria-pressed', pressed);
  return made;
};
// Every bucket of the resolution, and those of pictures too small for it, from the widest, with its pictures.
const shapes = () => {
  const counts = new Map(scene.shapes.map(size => [size.join(' × '), {size, count: 0}]));
  for (const item of scene.items) {
    const name = bucketOf(item);
    if (!name) continue;
    if (!counts.has(name)) counts.set(name, {size: item.k, count: 0});
    counts.get(name).count++;
  }
  return [...counts.values()].sort((one, other) => one.size[1] / one.size[0] - other.size[1] / other.size[0]);
};
const chips = () => {
  const focused = document.activeElement?.closest('.chip')?.dataset.key;
  const kinds = scene.kinds.map(([kind, text, count]) => {
    const made = chip(text, count, filter.kind === kind && !filter.names, () => show({kind}));
    made.dataset.key = `kind ${kind}`;
    made.hidden = !count && kind !== 'all' && filter.kind !== kind;
    return made;
  });
  part('kinds').replaceChildren(...kinds);
  const sizes = inTrash() ? [] : shapes().filter(({size, count}) => count || size.join(' × ') === filter.bucket);
  part('buckets').replaceChildren(...sizes.map(({size, count}) => {
    const name = size.join(' × '), made = chip(name, count, filter.bucket === name, () => {
      filter.bucket = filter.bucket === name ? '' : name;
      filter.names = null; filter.title = '';
      narrow();
    });
    made.dataset.key = `bucket ${name}`;
    return made;
  }));
  if (sizes.length) part('buckets').prepend(make('span', 'what', phrase('dataset.buckets_at', {px: scene.resolution})));

  const counts = new Map();
  if (!inTrash()) for (const item of visible()) for (const tag of tagsOf(item)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  for (const tag of filter.tags) if (!counts.has(tag)) counts.set(tag, 0);
  const sorted = [...counts].sort((one, other) =>
    filter.tags.has(other[0]) - filter.tags.has(one[0]) || other[1] - one[1] || one[0].localeCompare(other[0]));
  // A tag of one picture alone selects little: it waits behind the last chip.
  const first = sorted.filter(([tag, count], index) => index < SHOWN_TAGS && (count > 1 || filter.tags.has(tag)));
  const tags = (allTags ? sorted.slice(0, 400) : first).map(([tag, count]) => {
    const made = chip(tag.length > 40 ? `${tag.slice(0, 39)}…` : tag, count, filter.tags.has(tag), () => {
      filter.tags.has(tag) ? filter.tags.delete(tag) : filter.tags.add(tag);
      filter.names = null; filter.title = '';
      narrow();
    });
    made.dataset.key = `tag ${tag}`;
    made.title = tag;
    return made;
  });
  const rest = sorted.length - first.length;
  if (rest) tags.push(button('chip more', allTags ? phrase('dataset.fewer_tags') : phraseNum('dataset.more_tags', rest), () => {
    allTags = !allTags;
    narrow();
  }));
  part('tags').replaceChildren(...tags);
  if (focused) [...root.querySelectorAll('.chip')].find(made => made.dataset.key === focused)?.focus();
};
const show = change => {
  const before = inTrash();
  filter = {...filter, kind: 'all', names: null, title: '', ...change};
  if (change.names) { filter.tags = new Set(); filter.find = filter.bucket = ''; part('find').value = ''; }
  if (before !== inTrash()) { marked.clear(); cards.forEach(card => card.remove()); cards.clear(); draw(); } else narrow();
  part('grid').scrollTop = 0;
};
const reasons = () => part('reasons').replaceChildren(...scene.reasons.map(reason => {
  const row = make('p', 'reason', reason.text);
  for (const [act, label] of reason.cures) row.append(button('cure', label, () => cure(act, reason.names, reason.title)));
  return row;
}));
const cure = (act, names, title) => {
  if (act !== 'show') return tell('act', {act, names});
  show({names: new Set(names), title});
  root.scrollIntoView({block: 'nearest'});
};

// What people do.

const tell = (event, data) => {
  flush('left');
  if (event === 'pick' || event === 'act') numAsked++;
  trigger(event, {dataset: scene.dataset, ...data});
};
const mark = (name, on) => on ? marked.add(name) : marked.delete(name);
const clicked = (event, name) => {
  const list = visible().map(item => item.n), from = list.indexOf(anchor || active), to = list.indexOf(name);
  if (event.shiftKey && from >= 0) list.slice(Math.min(from, to), Math.max(from, to) + 1).forEach(one => mark(one, true));
  else if (event.ctrlKey || event.metaKey || inTrash()) mark(name, !marked.has(name));
  else return pick(name);
  anchor = name;
  marks();
};
const pick = (name, isBack = false) => {
  active = anchor = name;
  awaitPicture(name);
  narrow();
  if (!isBack) cards.get(name)?.scrollIntoView({block: 'nearest'});
  tell('pick', {name});
};
const beside = step => {
  const list = visible(), index = list.findIndex(item => item.n === active);
  return list[index < 0 ? 0 : index + step]?.n;
};
const step = by => {
  const name = inTrash() ? '' : beside(by);
  if (name && name !== active) pick(name);
};
const discard = () => {
  const names = chosenOrActive();
  if (!names.length || inTrash()) return;
  const gone = new Set(names), list = visible(), index = list.findIndex(item => item.n === active);
  const after = [...list.slice(index + 1), ...list.slice(0, Math.max(index, 0)).reverse()].find(item => !gone.has(item.n));
  if (gone.has(active)) awaitPicture('');
  tell('act', {act: 'delete', names, next: gone.has(active) ? after?.n ?? '' : active});
};
// Some at a time, so that it can be stopped; all are one edit.
let going = null;
const flip = async names => {
  if (!names.length || going || inTrash()) return;
  flush('left');
  const AT_ONCE = 4, run = going = {dataset: scene.dataset, visit: names.length > 1 ? newVisit() : ''};
  const problems = [], sided = [];
  let done = 0;
  const say = text => {
    const bar = part('working').querySelector('progress');
    part('working').hidden = false;
    bar.hidden = part('halt').hidden = going !== run || names.length <= AT_ONCE;
    Object.assign(bar, {max: names.length, value: done + problems.length});
    part('done').textContent = text;
    part('sided').hidden = !sided.length || going === run;
  };
  part('sided').onclick = () => {
    part('working').hidden = true;
    show({names: new Set(sided), title: phrase('dataset.left_or_right')});
  };
  try {
    for (let at = 0; at < names.length && !run.halted; at += AT_ONCE) {
      say(phrase('dataset.flipping', {num: Math.min(at + AT_ONCE, names.length), all: names.length}));
      const {dataset, visit} = run, answer = await server.flip({dataset, visit, names: names.slice(at, at + AT_ONCE)});
      if (answer.problem) throw new Error(answer.problem);
      done += answer.done;
      problems.push(...answer.problems);
      sided.push(...answer.sided);
    }
  } catch (error) {
    problems.push(error.message || phrase('problems.no_answer'));
  }
  going = null;
  const words = [phraseNum('dataset.num_flipped', done)];
  if (problems.length) words.push(phrase('dataset.not_flipped', {num: problems.length, why: problems.slice(0, 3).join(' ')}));
  if (sided.length) words.push(phraseNum('dataset.say_left', sided.length));
  say(words.join(' '));
  changed(run.dataset);
};
const changed = dataset => { if (dataset === scene.dataset) tell('look', {}); };
const look = () => {
  clearTimeout(lookTimer);
  const wait = looked + LOOK_MS - Date.now();
  if (wait > 0) { lookTimer = setTimeout(look, wait); return; }
  if (!element.offsetParent || !scene.dataset || isTyped) return;
  looked = Date.now();
  trigger('look', {dataset: scene.dataset});
};
window.addEventListener('focus', look);

// Keys: plain ones only where nothing is being typed; with Ctrl or Alt everywhere on the tab.

const press = id => document.querySelector(`#${id}`)?.click();
const plainKeys = {
  ArrowRight: () => step(1), j: () => step(1), ArrowLeft: () => step(-1), k: () => step(-1), Delete: discard,
  x: () => { if (active) { mark(active, !marked.has(active)); marks(); } },
  e: () => document.querySelector('#caption textarea')?.focus(),
  c: () => press('crop-picture'), m: () => press('mask-picture'), f: () => flip(chosenOrActive()),
  Escape: () => { marked.clear(); marks(); },
};
const heldKeys = event => {
  if (event.altKey && !event.ctrlKey) {
    return {KeyN: () => step(1), KeyP: () => step(-1), KeyZ: () => press('undo-caption'), Delete: discard}[event.code];
  }
  if (event.code === 'Enter') return () => { flush('left'); step(1); };
  return event.code === 'KeyS' ? () => press('save-caption') : null;
};
document.addEventListener('keydown', event => {
  const target = event.target, tab = element.closest('[role=tabpanel]');
  if (!element.offsetParent || event.defaultPrevented || (target !== document.body && tab && !tab.contains(target))) return;
  const typing = target.closest('textarea, select, [contenteditable=true], input:not([type=checkbox])');
  const held = event.ctrlKey || event.metaKey || event.altKey;
  let act = held ? heldKeys(event) : typing ? null : plainKeys[event.key];
  if (!act && !typing && (event.ctrlKey || event.metaKey) && event.code === 'KeyZ') act = () => press('undo-caption');
  if (!act) return;
  event.preventDefault();
  act();
});

// What the server says.

const heard = () => {
  const before = scene.dataset;
  scene = props.value ? JSON.parse(JSON.stringify(props.value)) : scene; // a copy: to change `props` would call us again
  scene.items.forEach((item, index) => { item.i = index; });
  scene.trash.forEach((item, index) => { item.i = index; });
  if (before !== scene.dataset) {
    marked.clear(); active = ''; filter = everything();
    part('find').value = ''; cards.forEach(card => card.remove()); cards.clear();
    if (!going) part('working').hidden = true;
  }
  for (const typed of unsaved.values()) {
    const item = typed.dataset === scene.dataset && scene.items.find(one => one.n === typed.name);
    if (item) item.c = typed.text.trim();
  }
  const back = before !== scene.dataset && takeView();
  if (inTrash() && !scene.trash.length) { filter.kind = 'all'; cards.forEach(card => card.remove()); cards.clear(); }
  reasons();
  draw();
  ownTags();
  if (back && !opened.name && cards.has(back)) pick(back, true);
};
part('find').addEventListener('input', event => {
  filter.find = event.target.value.trim().toLowerCase(); filter.names = null; filter.title = '';
  narrow();
});
part('everything').addEventListener('click', () => { visible().filter(fits).forEach(item => marked.add(item.n)); marks(); });
part('unmark').addEventListener('click', () => { marked.clear(); marks(); });
part('discard').addEventListener('click', discard);
part('mirror').addEventListener('click', () => flip(chosen()));
part('halt').addEventListener('click', () => { if (going) going.halted = true; });
part('restore').addEventListener('click', () => tell('act', {act: 'restore', names: targets()}));
