// The viewer's pictures: one, or A against B, zoomed and panned as one. A part of `viewer.js`, after `overlay.js`.
//
// Both are laid out by B: A is fitted into the place that B has. A zoom of null is the one that fits.

const staging = (stage, does) => {
  const panes = {a: stage.querySelector('.a'), b: stage.querySelector('.b')}, divider = stage.querySelector('.divider');
  const images = {a: panes.a.querySelector('img'), b: panes.b.querySelector('img')};
  const SWIPE_PX = 60, STILL_PX = 6, LARGEST = 8, NEAR_ONE = .02;
  let zoom = null, x = 0, y = 0, way = '', share = .5;

  // Sizes, in pixels of the page; a picture at 100 % has one of the screen for each of its own.
  const one = () => 1 / (window.devicePixelRatio || 1);
  const size = image => [image.naturalWidth || 1, image.naturalHeight || 1];
  const room = () => [panes.b.clientWidth, panes.b.clientHeight];
  const fit = () => {
    const [width, height] = size(images.b), [most, high] = room();
    return Math.min(most / width, high / height);
  };
  const scale = () => zoom ?? fit();
  const box = () => size(images.b).map(side => side * scale());
  const slack = () => box().map((side, index) => Math.max(0, (side - room()[index]) / 2));
  const isWider = () => slack().some(much => much > .5);
  // Where the picture is seen: its left, top, right and bottom within the pane.
  const edges = () => {
    const [width, height] = box(), [most, high] = room(), left = (most - width) / 2 + x, top = (high - height) / 2 + y;
    return [Math.max(0, left), Math.max(0, top), Math.min(most, left + width), Math.min(high, top + height)];
  };

  // Layout.
  const place = () => {
    if (!images.b.naturalWidth) return;  // nothing has come yet
    stage.classList.toggle('upright', stage.clientHeight > stage.clientWidth * 1.1);
    const [most, high] = room(), [width, height] = box(), [across, down] = slack();
    x = within(x, -across, across);
    y = within(y, -down, down);
    for (const image of [images.a, images.b]) {
      const [own, tall] = size(image), by = Math.min(width / own, height / tall);
      const left = Math.round((most - own * by) / 2 + x), top = Math.round((high - tall * by) / 2 + y);
      Object.assign(image.style, {width: `${own * by}px`, height: `${tall * by}px`, transform: `translate(${left}px, ${top}px)`});
    }
    stage.classList.toggle('wider', isWider());
    divide();
    does.zoomed(scale() / one(), zoom === null);
  };
  const divide = (next = share) => {
    share = within(next, 0, 1);
    const [left, top, right, bottom] = edges(), at = left + share * (right - left);
    panes.a.style.clipPath = way === 'slider' ? `inset(0 calc(100% - ${at}px) 0 0)` : '';
    Object.assign(divider.style, {left: `${at}px`, top: `${top}px`, height: `${bottom - top}px`});
    divider.setAttribute('aria-valuenow', Math.round(share * 100));
  };
  const zoomTo = (next, [across, down] = [0, 0]) => {
    const before = scale(), whole = fit();
    next = within(next, Math.min(whole, one()), Math.max(whole, one()) * LARGEST);
    zoom = Math.abs(next / whole - 1) < NEAR_ONE ? null : next;
    const by = scale() / before;
    x = across - (across - x) * by;
    y = down - (down - y) * by;
    place();
  };
  const toggle = point => {
    if (zoom !== null) return zoomTo(fit());
    zoomTo(Math.abs(fit() / one() - 1) < NEAR_ONE ? 2 * one() : one(), point);
  };
  const pan = (across, down) => {
    x += across;
    y += down;
    place();
  };

  // What is seen. The small picture is there at once; the whole one takes its place when it has come.
  const ready = new Set();
  const fetched = async whole => {
    const coming = new Image();
    coming.src = whole;
    await coming.decode();
    ready.add(whole);
  };
  const show = (which, {small, words}, whole) => {
    const image = images[which], isOther = image.small !== small;
    if (!isOther && image.wanted === whole) return;
    Object.assign(image, {small, wanted: whole, alt: words});
    const put = is => {
      image.isWhole = is;
      image.src = is ? whole : small;
    };
    if (ready.has(whole)) return put(true);
    if (isOther) put(false);
    if (whole) fetched(whole).then(() => image.wanted === whole && put(true), () => image.wanted === whole && does.gone());
  };
  for (const image of [images.a, images.b]) image.addEventListener('load', () => { place(); does.loaded(); });
  const clear = () => {
    for (const image of [images.a, images.b]) {
      Object.assign(image, {small: '', wanted: '', isWhole: false, alt: ''});
      image.removeAttribute('src');
    }
  };
  const compare = next => {
    way = next;
    for (const name of ['slider', 'side', 'swap']) stage.classList.toggle(name, name === way);
    divider.hidden = way !== 'slider';
    peek(false);
    place();
  };
  const peek = on => stage.classList.toggle('peek', on && way === 'swap');

  // The pointer: the divider is dragged, a picture that is wider than its room panned, and any other swiped.
  const pointers = new Map();
  let going = null;
  const inside = (pane, event) => {
    const at = pane.getBoundingClientRect();
    return event.clientX >= at.left && event.clientX < at.right && event.clientY >= at.top && event.clientY < at.bottom;
  };
  const point = event => {
    const at = panes[way === 'side' && inside(panes.a, event) ? 'a' : 'b'].getBoundingClientRect();
    return [event.clientX - at.left - at.width / 2, event.clientY - at.top - at.height / 2];
  };
  const toPointer = event => {
    const [left, , right] = edges();
    divide((event.clientX - stage.getBoundingClientRect().left - left) / (right - left));
  };
  const apart = () => {
    const [first, second] = [...pointers.values()];
    return Math.hypot(first.clientX - second.clientX, first.clientY - second.clientY);
  };
  const begins = event => {
    if (event.target === divider || divider.contains(event.target)) return 'divide';
    if (isWider()) return 'pan';
    return way === 'slider' ? 'divide' : 'swipe';
  };
  stage.addEventListener('pointerdown', event => {
    if (event.button > 0) return;
    event.preventDefault();
    stage.focus({preventScroll: true});
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    const kind = pointers.size > 1 ? 'pinch' : begins(event);
    going = {kind, from: event, last: event, moved: kind === 'pinch' || going?.kind === 'pinch', apart: pointers.size > 1 && apart()};
    stage.classList.toggle('held', kind === 'pan');
    if (kind === 'divide') toPointer(event);
  });
  stage.addEventListener('pointermove', event => {
    if (!going || !pointers.has(event.pointerId)) return;
    pointers.set(event.pointerId, event);
    const across = event.clientX - going.last.clientX, down = event.clientY - going.last.clientY;
    going.last = event;
    going.moved ||= Math.hypot(event.clientX - going.from.clientX, event.clientY - going.from.clientY) > STILL_PX;
    if (going.kind === 'divide') toPointer(event);
    else if (going.kind === 'pan') pan(across, down);
    else if (going.kind === 'pinch' && pointers.size > 1) {
      const now = apart();
      zoomTo(scale() * now / going.apart, point(event));
      going.apart = now;
    }
  });
  for (const kind of ['pointerup', 'pointercancel']) stage.addEventListener(kind, event => {
    if (!pointers.delete(event.pointerId) || !going) return;
    const {from, moved} = going, across = event.clientX - from.clientX, down = event.clientY - from.clientY;
    const ended = going.kind;
    if (pointers.size) return;
    going = null;
    stage.classList.remove('held');
    if (kind === 'pointercancel' || ended === 'divide' || ended === 'pinch') return;
    if (!moved) toggle(point(event));
    else if (ended === 'swipe' && Math.abs(across) > SWIPE_PX && Math.abs(across) > 1.5 * Math.abs(down)) does.swiped(across < 0 ? 1 : -1);
  });
  stage.addEventListener('wheel', event => {
    event.preventDefault();
    zoomTo(scale() * Math.exp(-event.deltaY * (event.ctrlKey ? .01 : .0015)), point(event));
  }, {passive: false});
  new ResizeObserver(place).observe(stage);

  return {
    show, clear, ready: whole => { fetched(whole).catch(() => {}); }, compare, peek, pan, toggle, divide, zoomBy: by => zoomTo(scale() * by),
    fit: () => { zoom = null; x = y = 0; place(); },
    share: () => share,
    isWider,
    size: () => images.b.isWhole ? size(images.b) : null,
    crisp: on => stage.classList.toggle('crisp', on),
    tag: (which, text) => { panes[which].querySelector('.tag').textContent = text; },
  };
};
