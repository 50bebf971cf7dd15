// The Batch tab's pictures: looked at, kept, rejected and rated in the browser; the server keeps what was said.
//
// New pictures are put at the end, so that nothing moves under the hand. What comes from a picture is put in as text.
const root = element.querySelector('.sift'), PAGE = 96;
const part = name => root.querySelector(`.${name}`);
const WORDS = {
  all: phrase('word.all'), unrated: phrase('gallery.unrated'), kept: phrase('gallery.kept'),
  rejected: phrase('gallery.rejected_ones'),
};
let job = 0, view = '', num = PAGE, active = '', asked = 0, items = [], counts = {}, trash = 0;
const cards = new Map();

const make = (tag, className = '', text = '') => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== '') made.textContent = text;
  return made;
};
const say = text => { part('said').textContent = text; };
const current = () => items.find(item => item.n === active);

// What is shown.

const words = item => [item.v === 'kept' ? phrase('gallery.is_kept') : item.v === 'rejected' ? phrase('gallery.is_rejected') : '',
  item.r ? phrase('gallery.num_stars', {num: item.r}) : ''].filter(Boolean).join(', ') || phrase('gallery.not_rated');
const newCard = item => {
  const card = make('button', 'thumbnail-item'), image = make('img');
  card.type = 'button';
  card.dataset.whole = item.w;
  image.src = item.s;
  image.alt = '';
  image.loading = 'lazy';
  card.mark = make('span', 'mark');
  card.append(image, card.mark);
  card.addEventListener('click', () => pick(item.n));
  return card;
};
const dress = item => {
  const card = cards.get(item.n);
  card.dataset.verdict = item.v;
  card.mark.textContent = (item.v === 'kept' ? '✓' : item.v === 'rejected' ? '✕' : '') + '★'.repeat(item.r);
  card.setAttribute('aria-label', `${item.l}: ${words(item)}`);
  card.setAttribute('aria-current', item.n === active);
  card.title = item.l;
};
const stage = () => {
  const item = current(), image = part('seen img'), link = part('seen a');
  part('seen').classList.toggle('none', !item);
  part('rate').classList.toggle('none', !item);
  root.querySelectorAll('.rate button').forEach(button => { button.disabled = !item; });
  if (!item) { image.removeAttribute('src'); link.removeAttribute('href'); }
  else if (image.getAttribute('src') !== item.w) { image.src = item.w; link.href = item.w; }
  image.alt = item?.l ?? '';
  part('seen figcaption').textContent = item ? `${item.l} · ${words(item)}` : '';
  for (const button of root.querySelectorAll('[data-verdict]:not(.thumbnail-item)'))
    button.setAttribute('aria-pressed', item?.v === button.dataset.verdict);
  for (const button of root.querySelectorAll('[data-rating]'))
    button.setAttribute('aria-pressed', !!item && item.r >= Number(button.dataset.rating));
};
const chips = () => {
  part('kinds').replaceChildren(...Object.entries(WORDS).map(([kind, text]) => {
    const chip = make('button', 'chip', text);
    chip.type = 'button';
    chip.dataset.view = kind;
    chip.append(make('b', '', String(counts[kind] ?? 0)));
    chip.setAttribute('aria-pressed', view === kind);
    return chip;
  }));
  root.querySelector('[data-act=zip]').disabled = !counts.kept;
  root.querySelector('[data-act=throw]').disabled = !counts.rejected;
  const restore = root.querySelector('[data-act=restore]');
  restore.textContent = trash ? phrase('gallery.restore_num', {num: trash}) : phrase('button.restore');
  restore.hidden = !trash;
};
const draw = sheets => {
  for (const item of items) {
    if (!cards.has(item.n)) { cards.set(item.n, newCard(item)); part('grid').append(cards.get(item.n)); }
    dress(item);
  }
  if (sheets) {
    root.querySelectorAll('.sheet').forEach(old => old.remove());
    for (const [small, whole, label] of sheets) {
      const link = make('a', 'sheet thumbnail-item'), image = make('img');
      image.src = small; image.alt = ''; image.loading = 'lazy';
      link.href = whole; link.target = '_blank'; link.rel = 'noopener';
      link.append(image, make('span', 'mark', label));
      part('grid').append(link);
    }
  }
  part('empty').hidden = items.length > 0;
  part('empty').textContent = counts.all ? phrase('gallery.none_in_view') : phrase('gallery.no_picture');
  chips(); stage();
};

// What the server says. Who asks last is heard, whichever answer comes last.

const look = async (wanted = view, anew = false) => {
  const turn = ++asked;
  let page;
  try { page = await server.look({job, view: wanted, num}); } catch { return; }
  if (turn !== asked) return;
  if (page.problem) { root.hidden = true; return; }
  const other = anew || page.view !== view;
  view = page.view; counts = page.counts; trash = page.trash;
  const here = new Set(page.items.map(item => item.n));
  // What was said of a picture in this view leaves it there until another view is chosen.
  items = other ? page.items : [...items.map(item => page.items.find(one => one.n === item.n) ?? item),
    ...page.items.filter(item => !items.some(one => one.n === item.n))];
  if (other) { cards.forEach(card => card.remove()); cards.clear(); }
  if (!current()) active = items[0]?.n ?? '';
  part('more').hidden = !page.more;
  root.hidden = !counts.all && !trash;
  draw(page.sheets);
};
// Says what is wrong, or nothing.
const tell = async (change, item = current()) => {
  if (!item) return '';
  const before = {v: item.v, r: item.r};
  Object.assign(item, 'verdict' in change ? {v: change.verdict} : {r: change.rating});
  dress(item); stage();
  let answer;
  try { answer = await server.rate({job, name: item.n, ...change}); } catch { answer = {problem: phrase('gallery.not_kept')}; }
  Object.assign(item, answer.problem ? before : {v: answer.v, r: answer.r});
  if (!answer.problem) { counts = answer.counts; trash = answer.trash; }
  say(answer.problem ?? '');
  if (cards.has(item.n)) dress(item);
  chips(); stage();
  return answer.problem ?? '';
};
const act = async name => {
  if (name === 'open') { if (active) trigger('open', {opens: `picture ${jobKey()}${active}`}); return; }
  let answer;
  say('…');
  try { answer = await server.act({job, act: name}); } catch { answer = {problem: phrase('problems.no_server')}; }
  say(answer.problem ?? answer.said);
  if (answer.at) {
    const link = make('a');
    link.href = answer.at; link.download = answer.file;
    document.body.append(link); link.click(); link.remove();
  }
  if (name !== 'zip') look(view, true);
};
const jobKey = () => props.value?.key ?? '';

// What people do.

const pick = (name, focus = false) => {
  const before = current();
  active = name;
  if (before) dress(before);
  if (current()) dress(current());
  stage();
  const card = cards.get(name);
  if (focus) card?.focus({preventScroll: true});
  const grid = part('grid');
  if (card && grid.scrollHeight > grid.clientHeight) {
    const top = card.offsetTop - grid.offsetTop;
    if (top < grid.scrollTop) grid.scrollTop = top - 8;
    else if (top + card.offsetHeight > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + card.offsetHeight - grid.clientHeight + 8;
  }
};
const step = by => {
  const index = items.findIndex(item => item.n === active), next = items[index + by];
  if (next) pick(next.n, true);
};
// Kept or rejected, the next picture comes by itself; pressed again, nothing is said any more.
const judge = verdict => {
  const item = current();
  if (!item) return;
  const again = item.v === verdict;
  tell({verdict: again ? '' : verdict});
  if (!again) step(1);
};
const star = rating => { const item = current(); if (item) tell({rating: item.r === rating ? 0 : rating}); };
root.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button || button.classList.contains('thumbnail-item')) return;
  if (button.dataset.view) { num = PAGE; look(button.dataset.view, true); }
  else if (button.dataset.verdict) judge(button.dataset.verdict);
  else if (button.dataset.rating) star(Number(button.dataset.rating));
  else if (button.dataset.act) act(button.dataset.act);
  else if (button.classList.contains('more')) { num += PAGE; look(); }
});
const KEYS = {k: () => judge('kept'), x: () => judge('rejected'), ArrowRight: () => step(1), ArrowLeft: () => step(-1), 0: () => tell({rating: 0})};
for (let stars = 1; stars <= 5; stars++) KEYS[stars] = () => star(stars);
document.addEventListener('keydown', event => {
  const inside = element.contains(event.target) || event.target === document.body;
  if (!element.offsetParent || root.hidden || !inside || event.defaultPrevented) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
// The same for a picture that is seen full-screen, known by the address of its thumbnail (`viewer.js`).
part('grid').judging = {
  of: small => items.find(item => small.endsWith(item.s)),
  tell: (item, change) => { pick(item.n); return tell(change, item); },
};
const heard = () => {
  const value = props.value;
  if (!value?.job) { root.hidden = true; return; }
  const other = value.job !== job;
  if (other) { job = value.job; num = PAGE; active = ''; say(''); }
  look(view, other);
};
watch('value', heard);
heard();
