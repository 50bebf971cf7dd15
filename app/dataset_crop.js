// A box dragged over a picture, free or of a bucket's shape; a part of `dataset_pictures.js`, after `overlay.js`.

const cropping = changed => {
  const LEAST = 16, NEAR = {mouse: 10, pen: 16, touch: 24};
  const stage = make('div', 'act-stage crop-stage'), frame = make('div', 'crop-frame'), readout = make('p', 'act-readout');
  const aspect = make('select');
  const words = [phrase('picture.left'), phrase('picture.top'), phrase('picture.width'), phrase('picture.height')];
  const fields = words.map(word => {
    const label = make('label', 'act-size', word), input = make('input');
    Object.assign(input, {type: 'number', min: 0, step: 1});
    label.append(input);
    return {label, input};
  });
  let width = 512, height = 512, box = {x: 0, y: 0, w: 512, h: 512}, ratio = 0, going = null;
  for (const corner of ['nw', 'ne', 'sw', 'se']) frame.append(make('i', `corner ${corner}`));
  stage.append(frame);
  aspect.setAttribute('aria-label', phrase('picture.shape'));
  frame.tabIndex = 0;
  frame.setAttribute('role', 'application');
  frame.setAttribute('aria-label', phrase('picture.crop_keys'));

  const edges = () => {
    const left = within(Math.round(box.x), 0, width - LEAST), top = within(Math.round(box.y), 0, height - LEAST);
    return [left, top, within(Math.round(box.x + box.w), left + LEAST, width), within(Math.round(box.y + box.h), top + LEAST, height)];
  };
  const show = () => {
    const [left, top, right, bottom] = edges();
    Object.assign(frame.style, {left: `${left / width * 100}%`, top: `${top / height * 100}%`,
      width: `${(right - left) / width * 100}%`, height: `${(bottom - top) / height * 100}%`});
    [left, top, right - left, bottom - top].forEach((value, index) => {
      if (document.activeElement !== fields[index].input) fields[index].input.value = value;
    });
    const chosen = buckets[aspect.value], more = chosen && Math.max(chosen[0] / (right - left), chosen[1] / (bottom - top));
    readout.textContent = phrase('picture.crop_size', {width: right - left, height: bottom - top, of: `${width} × ${height}`})
      + (more > 1 ? phrase('picture.enlarged', {times: more.toFixed(1)}) : '');
  };
  const set = next => { box = next; changed(); show(); };
  const place = event => {
    const shown = stage.getBoundingClientRect();
    return [within((event.clientX - shown.left) * width / shown.width, 0, width),
      within((event.clientY - shown.top) * height / shown.height, 0, height)];
  };
  // The sides that a pointer holds: -1 left or top, 1 right or bottom, 0 none; null where it is outside.
  const held = event => {
    const [x, y] = place(event), near = (NEAR[event.pointerType] ?? 10) * width / stage.clientWidth;
    const side = (at, from, length) => Math.abs(at - from) < near ? -1 : Math.abs(at - from - length) < near ? 1 : 0;
    if (x < box.x - near || x > box.x + box.w + near || y < box.y - near || y > box.y + box.h + near) return null;
    return [side(x, box.x, box.w), side(y, box.y, box.h)];
  };
  const sized = (start, [across, down], w, h) => {
    if (ratio && !down) { down = 1; h = w / ratio; }
    if (ratio && !across) { across = 1; w = h * ratio; }
    const fixed = [across < 0 ? start.x + start.w : start.x, down < 0 ? start.y + start.h : start.y];
    const most = [across < 0 ? fixed[0] : width - fixed[0], down < 0 ? fixed[1] : height - fixed[1]];
    w = Math.min(Math.max(w, LEAST), most[0]);
    h = Math.min(Math.max(h, LEAST), most[1]);
    if (ratio) {
      w = Math.min(Math.max(w, h * ratio), most[0], most[1] * ratio);
      h = w / ratio;
    }
    return {x: across < 0 ? fixed[0] - w : fixed[0], y: down < 0 ? fixed[1] - h : fixed[1], w, h};
  };
  const moved = (start, x, y) => ({...start, x: within(start.x + x, 0, width - start.w), y: within(start.y + y, 0, height - start.h)});
  const drag = event => {
    const [x, y] = place(event), {start, sides, from} = going;
    if (!sides[0] && !sides[1]) return set(moved(start, x - from[0], y - from[1]));
    const w = sides[0] ? (x - (sides[0] < 0 ? start.x + start.w : start.x)) * sides[0] : start.w;
    const h = sides[1] ? (y - (sides[1] < 0 ? start.y + start.h : start.y)) * sides[1] : start.h;
    set(sized(start, sides, w, h));
  };
  stage.addEventListener('pointerdown', event => {
    if (event.button > 0 || going) return;
    event.preventDefault();
    frame.focus();
    stage.setPointerCapture(event.pointerId);
    const from = place(event), sides = held(event);
    going = {from, sides: sides ?? [1, 1], start: sides ? box : {x: from[0], y: from[1], w: 0, h: 0}, pointer: event.pointerId};
  });
  stage.addEventListener('pointermove', event => {
    if (going) return event.pointerId === going.pointer ? drag(event) : undefined;
    const sides = held(event);
    stage.style.cursor = !sides ? 'crosshair' : sides[0] && sides[1] ? `${sides[0] === sides[1] ? 'nwse' : 'nesw'}-resize`
      : sides[0] ? 'ew-resize' : sides[1] ? 'ns-resize' : 'move';
  });
  for (const kind of ['pointerup', 'pointercancel']) stage.addEventListener(kind, event => {
    if (event.pointerId === going?.pointer) going = null;
  });
  fields.forEach(({input}, index) => input.addEventListener('input', () => {
    const value = Number(input.value), [left, top, right, bottom] = edges();
    if (input.value === '' || !Number.isFinite(value)) return;
    if (index === 0) set(moved(box, value - left, 0));
    else if (index === 1) set(moved(box, 0, value - top));
    else if (index === 2) set(sized(box, [1, 0], value, bottom - top));
    else set(sized(box, [0, 1], right - left, value));
  }));
  fields.forEach(({input}) => input.addEventListener('blur', show));

  // Shapes: the largest box of each that the picture has, about where the present one is.
  let buckets = {};
  const fit = () => {
    if (!ratio) return show();
    const w = Math.min(width, height * ratio), h = w / ratio;
    set(moved({x: box.x + box.w / 2 - w / 2, y: box.y + box.h / 2 - h / 2, w, h}, 0, 0));
  };
  aspect.addEventListener('change', () => {
    const shape = buckets[aspect.value] ?? (aspect.value === 'same' ? [width, height] : null);
    ratio = shape ? shape[0] / shape[1] : 0;
    fit();
  });
  const option = (value, text) => {
    const made = make('option', '', text);
    made.value = value;
    return made;
  };
  const shape = make('label', 'act-size', phrase('picture.shape'));
  shape.append(aspect);
  return {
    key: 'crop', title: phrase('picture.crop'), use: phrase('picture.crop'), hint: phrase('picture.crop_hint'),
    begin: picture => {
      [width, height] = picture.size;
      stage.style.aspectRatio = `${width} / ${height}`;
      stage.style.setProperty('--shape', width / height);
      stage.style.backgroundImage = `url(${JSON.stringify(picture.url)})`;
      const shapes = window.velaturaDataset.shapes();
      buckets = Object.fromEntries(shapes.map(({size}) => [size.join(' × '), size]));
      aspect.replaceChildren(option('', phrase('picture.free')), option('same', phrase('picture.same_shape')),
        ...shapes.map(({size, count}) => option(size.join(' × '), size.join(' × ') + (count ? ` (${count})` : ''))));
      ratio = 0; going = null;
      box = {x: 0, y: 0, w: width, h: height};
      show();
    },
    body: () => [stage, group(phrase('picture.crop'), shape, ...fields.map(({label}) => label)), readout],
    call: () => ['crop', {box: edges()}],
    press: event => {
      if (event.target !== frame || event.ctrlKey || event.metaKey || event.altKey) return false;
      const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (!by) return false;
      const step = Math.max(1, Math.round(Math.min(width, height) / 100));
      if (!event.shiftKey) set(moved(box, by[0] * step, by[1] * step));
      else set(sized(box, by.map(Math.abs), box.w + by[0] * step, box.h + by[1] * step));
      return true;
    },
    first: () => frame,
  };
};
