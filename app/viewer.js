// Pictures full-screen, wherever the page shows some: one after the other, or against one that was kept as A.
//
// What can be seen so stands within a `viewing` element, which is the list that is walked through. A thumbnail's name
// leads to the whole picture, which the server is asked for once it is seen; until then the thumbnail stands for it.
const dialog = element.querySelector('dialog');
const part = name => dialog.querySelector(`.view-${name}`), tool = name => dialog.querySelector(`[data-do=${name}]`);
// A picture that stands alone, and the list that it is of; and what is meant where nothing is pointed at.
const BESIDE = [['#picture, #compare', '#recent'], ['#batch-pictures .seen', '#batch-pictures .grid']];
const MAIN = ['#batch-pictures .seen', '#compare', '#picture', '#samples .newest', '#library-details .panel'];
const CHOOSES = 'button.thumbnail-item, [data-key], [data-won]';  // a press on these means something else
const WAYS = {slider: phrase('viewer.slider'), side: phrase('viewer.side'), swap: phrase('viewer.swap')};
const AHEAD = [0, 1, -1], STEP_PX = 80, STEP = .05, FASTER = 1.25;
const WHOLE = /\/files\/[0-9a-f]{32}\//;  // in the address of what was drawn here
const known = new Map();  // by a thumbnail's name: where the whole picture is, and what made it
let list = null, items = [], seen = null, kept = null, way = 'slider', opener = null, isCrisp = false, isTold = true, noted = '';

// Pictures of the page.

const named = address => /\/(?:thumbs|files)\/([0-9a-f]{32})/.exec(address)?.[1] ?? '';
const itemOf = img => {
  const card = img.closest('button, a, figure');
  const name = img.closest('[data-blind]') ? '' : named(img.src);  // what made it is not to be known before the vote
  const whole = [card?.dataset.whole, card?.href, img.src].find(address => WHOLE.test(address)) ?? '';
  const words = img.alt || card?.title || card?.querySelector('.name, figcaption, .caption-label')?.textContent || '';
  return {key: name || img.src, name, small: img.src, whole, words: words.trim()};
};
const pictures = place => [...place.querySelectorAll('img')].filter(img => img.src && !img.closest('[hidden]'));
const read = place => [...new Map(pictures(place).map(itemOf).map(item => [item.key, item])).values()];
const listOf = img => {
  const beside = BESIDE.find(([alone]) => img.closest(alone))?.[1];
  return (beside && document.querySelector(beside)) || img.closest('.viewing');
};
const onScreen = img => !!img?.src && img.checkVisibility({visibilityProperty: true});
const imageIn = place => pictures(place).filter(onScreen).at(place.id === 'compare' ? -1 : 0);  // the newer of two
// The picture that has the focus, or lies under the pointer, or is the large one of the tab.
const pointed = () => {
  const focused = document.activeElement?.closest('.viewing') && document.activeElement;
  if (focused) return [focused.querySelector('img'), imageIn(focused.closest('.viewing'))].find(onScreen);
  const hovered = [...document.querySelectorAll('.viewing img')].find(img => (img.closest('button, a') ?? img).matches(':hover'));
  if (onScreen(hovered)) return hovered;
  return MAIN.flatMap(place => [...document.querySelectorAll(place)]).map(imageIn).find(onScreen);
};

// What is shown.

const stage = staging(part('stage'), {
  zoomed: (scale, fits) => {
    part('scale').textContent = phrase('viewer.percent', {percent: Math.round(scale * 100)});
    tool('zoom').firstChild.data = fits ? phrase('viewer.whole_size') : phrase('viewer.fit');
  },
  loaded: () => tell(),
  gone: () => note(phrase('viewer.gone')),
  swiped: by => step(by),
});
const wholeOf = item => item.whole || known.get(item.name)?.at || '';
const index = () => items.findIndex(item => item.key === seen.key);
const lines = () => {
  const size = stage.size(), made = known.get(seen.name)?.made ?? [];
  const isDrawn = WHOLE.test(wholeOf(seen));
  return size && isDrawn ? [...made, [phrase('item.size'), phrase('viewer.size', {width: size[0], height: size[1]})]] : made;
};
const tell = () => {
  if (!seen) return;
  const made = lines(), first = made[0]?.[1] ?? '';
  part('title').textContent = seen.words || phrase('word.picture');
  // What says the same as the prompt below it is for screen readers alone.
  part('title').classList.toggle('told', first.length > 3 && seen.words.startsWith(first.slice(0, 60)));
  part('made').replaceChildren(...made.flatMap(([label, text]) => [make('dt', '', label), make('dd', '', text)]));
};
// What was said of a picture, in a list that takes it: a batch's. Its own keys are the same.
const judged = () => list?.judging?.of(seen.small);
const mark = () => {
  const is = judged();
  part('judge').hidden = !list?.judging;
  for (const button of part('judge').querySelectorAll('button')) {
    const {verdict, rating} = button.dataset;
    button.disabled = !is;
    button.setAttribute('aria-pressed', verdict ? is?.v === verdict : is?.r >= Number(rating));
  }
};
const judge = async change => {
  const is = judged();
  if (!is) return;
  const said = change(is), told = list.judging.tell(is, said);
  // Kept or rejected, the next comes by itself, as in the list.
  if (said.verdict) step(1);
  mark();
  const problem = await told;
  if (!dialog.open) return;  // the list says it too
  if (problem) note(problem);
  mark();
};
const verdict = as => judge(is => ({verdict: is.v === as ? '' : as}));
const rate = stars => judge(is => ({rating: is.r === stars ? 0 : stars}));
const dress = () => {
  const at = index(), can = items.length > 1 || kept;
  part('at').textContent = phrase('viewer.at', {num: at + 1, all: items.length});
  tool('back').disabled = at <= 0;
  tool('on').disabled = at >= items.length - 1;
  tool('compare').disabled = !can;
  tool('compare').setAttribute('aria-pressed', !!kept);
  tool('crisp').setAttribute('aria-pressed', isCrisp);
  tool('words').setAttribute('aria-pressed', isTold);
  tool('way').hidden = !kept;
  tool('peek').hidden = !kept || way !== 'swap';
  tool('way').firstChild.data = WAYS[way];
  dialog.classList.toggle('untold', !isTold);
  part('hint').textContent = kept?.key === seen.key ? phrase('viewer.kept') : noted;
  stage.tag('a', kept ? phrase('viewer.a', {words: kept.words}) : '');
  stage.tag('b', kept ? phrase('viewer.b', {words: seen.words}) : '');
  mark();
};
const note = text => {
  noted = text;
  dress();
};
const draw = () => {
  stage.show('b', seen, wholeOf(seen));
  if (kept) stage.show('a', kept, wholeOf(kept));
  dress();
  tell();
};
// The whole pictures of what is seen and of its neighbours, and what made them.
const ask = async () => {
  const at = index(), near = AHEAD.map(by => items[at + by]).filter(Boolean);
  const names = [kept, ...near].map(item => item?.name).filter(name => name && !known.has(name));
  if (names.length) {
    try {
      const answer = await server.look({names});
      for (const name of names) known.set(name, answer.pictures[name] ?? {at: '', made: []});
    } catch {
      if (dialog.open && !wholeOf(seen)) note(phrase('viewer.no_answer'));
      return;
    }
    if (dialog.open) draw();
  }
  near.map(wholeOf).filter(Boolean).forEach(stage.ready);
};
const see = item => {
  seen = item;
  noted = '';
  draw();
  ask();
};
const go = to => {
  // The list as it is by now, unless what is seen has left it.
  const now = list?.isConnected ? read(list) : [];
  if (now.some(item => item.key === seen.key)) items = now;
  const next = items[within(to(), 0, items.length - 1)];
  if (next.key !== seen.key) see(next);
};
const step = by => go(() => index() + by);

// Against another.

const compare = (against = seen) => {
  kept = kept ? null : against;
  stage.compare(kept ? way : '');
  draw();
};
const change = () => {
  if (!kept) return;
  const ways = Object.keys(WAYS);
  way = ways[(ways.indexOf(way) + 1) % ways.length];
  stage.compare(way);
  dress();
};

// Opened and closed.

const open = (img, from) => {
  if (dialog.open) return;
  list = listOf(img);
  items = read(list);
  const item = itemOf(img), listed = one => items.find(other => other.key === one.key) ?? one;
  const pinned = img.closest('#compare') && pictures(img.closest('#compare')).map(itemOf).find(one => one.key !== item.key);
  if (!items.some(one => one.key === item.key)) items.unshift(item);
  opener = from ?? img.closest('button, a');
  kept = null;
  dialog.showModal();
  stage.compare('');
  stage.fit();
  part('stage').focus();
  see(listed(item));
  if (pinned) compare(listed(pinned));
};
const close = () => dialog.close();
dialog.addEventListener('close', () => {
  // What was pressed may have been drawn anew meanwhile.
  const again = () => list?.isConnected && pictures(list).find(img => named(img.src) === named(opener?.querySelector?.('img')?.src ?? ''));
  const back = opener?.isConnected ? opener : (again() || null)?.closest('button, a');
  back?.focus({preventScroll: true});
  stage.clear();
  seen = kept = null;
});

// The pointer.

const DO = {
  back: () => step(-1), on: () => step(1), compare: () => compare(), way: change, close,
  zoom: () => stage.toggle(),
  crisp: () => { stage.crisp(isCrisp = !isCrisp); dress(); },
  words: () => { isTold = !isTold; dress(); },
};
dialog.addEventListener('click', event => {
  const said = event.target.closest('button')?.dataset ?? {};
  DO[said.do]?.();
  if (said.verdict) verdict(said.verdict);
  if (said.rating) rate(Number(said.rating));
});
tool('peek').addEventListener('pointerdown', () => stage.peek(true));
for (const kind of ['pointerup', 'pointerleave', 'pointercancel', 'blur']) tool('peek').addEventListener(kind, () => stage.peek(false));
// The picture that a press means, if it means to see it.
const pressed = event => {
  const place = event.target.closest?.('.viewing');
  if (!place || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return null;
  const control = event.target.closest('button, a');
  if (event.target.closest('.enlarge')) return control.querySelector('img');
  // Gradio's own button for full screen is the last of its row.
  const row = control?.closest('.icon-button-wrapper');
  if (row) return [...row.querySelectorAll('button')].at(-1) === control ? imageIn(place) : null;
  if (control?.matches(CHOOSES) || place.id === 'compare') return null;
  return event.target.closest('img') ?? control?.querySelector('img');
};
const enlarge = event => {
  const img = pressed(event);
  if (!onScreen(img)) return;
  event.preventDefault();
  event.stopPropagation();
  open(img, event.target.closest('button, a'));
};
// The sign on a card by which it is seen full-screen, put there when the card is pointed at, or has the focus.
const sign = card => {
  if (!card || card.querySelector('.enlarge') || !pictures(card).some(img => named(img.src) || img.src.startsWith('data:'))) return;
  const made = make('i', 'enlarge');
  made.title = phrase('viewer.enlarge');
  card.append(made);
  card.setAttribute('aria-keyshortcuts', 'v');
};
const cards = '.viewing :is(.thumbnail-item, .card, .frame a, .view-picture, .side)';

// Keys. None is taken from somebody who types; while a picture is seen, the page beneath hears none.

const typing = target => target.isContentEditable || /^(textarea|select)$/i.test(target.tagName)
  || (/^input$/i.test(target.tagName) && !/^(checkbox|radio|range|button|file)$/i.test(target.type));
const across = (event, by) => {
  if (!event.shiftKey && event.target.getAttribute('role') !== 'slider') step(by);
  else if (kept && way === 'slider') stage.divide(stage.share() + by * STEP);
  else stage.pan(-by * STEP_PX, 0);
};
const KEYS = {
  ArrowLeft: event => across(event, -1),
  ArrowRight: event => across(event, 1),
  ArrowUp: () => stage.pan(0, STEP_PX),
  ArrowDown: () => stage.pan(0, -STEP_PX),
  Home: () => go(() => 0),
  End: () => go(() => items.length - 1),
  Escape: close,
  z: DO.zoom,
  '+': () => stage.zoomBy(FASTER),
  '-': () => stage.zoomBy(1 / FASTER),
  c: () => tool('compare').disabled || compare(),
  m: change,
  ' ': () => stage.peek(true),
  p: DO.crisp,
  i: DO.words,
  k: () => verdict('kept'),
  x: () => verdict('rejected'),
  0: () => judge(() => ({rating: 0})),
};
for (let stars = 1; stars <= 5; stars++) KEYS[stars] = () => rate(stars);
const keepInside = event => {
  const all = [part('stage'), ...dialog.querySelectorAll('button, .divider')].filter(one => !one.disabled && one.checkVisibility());
  const at = all.indexOf(document.activeElement), next = event.shiftKey ? at - 1 : at + 1;
  event.preventDefault();
  all.at(next % all.length).focus();
};
const press = event => {
  if (!event.key || event.isComposing || document.querySelector('dialog[open]:not(.viewer)')) return;
  const isPlain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if (!dialog.open) {
    if (event.key.toLowerCase() !== 'v' || !isPlain || typing(event.target)) return;
    const img = pointed();
    if (!img) return;
    event.preventDefault();
    event.stopPropagation();
    open(img, document.activeElement.matches('body') ? null : document.activeElement);
    return;
  }
  if ('?' === event.key) return;  // the list of keys opens over it
  event.stopPropagation();
  if (event.key === 'Tab') return keepInside(event);
  const button = event.target.closest?.('button'), act = KEYS[event.key.length > 1 ? event.key : event.key.toLowerCase()];
  // On a button the space bar presses that, but for the one that is held.
  if (!act || !isPlain || (button && button !== tool('peek') && event.key === ' ')) return;
  event.preventDefault();
  act(event);
};
window.velaturaViewer?.forget();
const heard = new AbortController();
for (const [kind, act] of [
  ['keydown', press], ['keyup', () => stage.peek(false)], ['click', enlarge],
  ['pointerover', event => sign(event.target.closest?.(cards))], ['focusin', event => sign(event.target.closest?.(cards))],
]) window.addEventListener(kind, act, {capture: true, signal: heard.signal});
// Where nothing is pointed at before it is pressed, all cards have it.
if (matchMedia('(hover:none)').matches) {
  let waits = 0;
  const all = () => { waits = 0; document.querySelectorAll(cards).forEach(sign); };
  const seer = new MutationObserver(() => { waits ||= setTimeout(all, 300); });
  seer.observe(document.body, {childList: true, subtree: true});
  heard.signal.addEventListener('abort', () => seer.disconnect());
}
window.velaturaViewer = {forget: () => heard.abort()};
