// A mask painted with a brush over a picture, by mouse, finger, pen or keys; after `overlay.js`.
//
// The colour's opacity is the mask. `changed` is told of each stroke.

const painting = (label, changed) => {
  const COLOUR = '#c9602f', ring = make('div', 'act-ring'), canvas = make('canvas', 'act-canvas');
  const stage = make('div', 'act-stage'), size = make('input');
  let width = 512, height = 512, strokes = [], held = 0, going = null, erasing = false, at = null;
  const brush = canvas.getContext('2d', {willReadFrequently: true});
  const draw = (stroke, from = 0) => {
    brush.globalCompositeOperation = stroke.erase ? 'destination-out' : 'source-over';
    brush.strokeStyle = brush.fillStyle = COLOUR;
    if (stroke.layer) return brush.drawImage(stroke.layer, 0, 0);
    if (stroke.box) return brush.fillRect(...stroke.box);
    if (stroke.all) {
      brush.globalCompositeOperation = stroke.all === 'invert' ? 'source-out' : 'destination-out';
      return brush.fillRect(0, 0, width, height);
    }
    brush.lineWidth = stroke.size;
    brush.lineCap = brush.lineJoin = 'round';
    brush.beginPath();
    brush.moveTo(...stroke.points[from]);
    for (const point of stroke.points.slice(from)) brush.lineTo(point[0] + .01, point[1]);
    brush.stroke();
  };
  const replay = () => {
    brush.clearRect(0, 0, width, height);
    strokes.forEach(stroke => draw(stroke));
  };
  const add = stroke => { strokes.push(stroke); draw(stroke); changed(); };
  const place = event => {
    const shown = canvas.getBoundingClientRect();
    return [(event.clientX - shown.left) * width / shown.width, (event.clientY - shown.top) * height / shown.height];
  };
  const show = () => {
    const share = canvas.clientWidth / width;
    ring.hidden = !at;
    if (!at) return;
    ring.style.width = ring.style.height = `${size.value * share}px`;
    ring.style.left = `${at[0] * share}px`;
    ring.style.top = `${at[1] * share}px`;
  };
  canvas.addEventListener('pointerdown', event => {
    if (event.button > 0 || going) return;
    event.preventDefault();
    canvas.focus();
    canvas.setPointerCapture(event.pointerId);
    going = {points: [place(event)], size: Number(size.value), erase: erasing, pointer: event.pointerId};
    draw(going);
  });
  canvas.addEventListener('pointermove', event => {
    if (going && event.pointerId !== going.pointer) return;
    at = place(event);
    show();
    if (!going) return;
    const from = going.points.length - 1, all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) going.points.push(place(one));
    draw(going, from);
  });
  const end = event => {
    if (!going || event.pointerId !== going.pointer) return;
    strokes.push(going);
    going = null;
    replay();
    changed();
  };
  for (const kind of ['pointerup', 'pointercancel']) canvas.addEventListener(kind, end);
  canvas.addEventListener('pointerleave', () => { at = null; show(); });
  canvas.tabIndex = 0;
  canvas.setAttribute('role', 'application');
  canvas.setAttribute('aria-label', phrase('region.brush_keys', {label}));
  Object.assign(size, {type: 'range', min: 4});
  size.setAttribute('aria-label', phrase('region.brush_size'));
  size.addEventListener('input', show);
  const modes = [phrase('region.to_paint'), phrase('region.to_erase')].map((word, index) => button(word, () => choose(index === 1)));
  const choose = erase => {
    erasing = erase;
    modes.forEach((mode, index) => mode.setAttribute('aria-pressed', erase === (index === 1)));
  };
  const undo = () => { if (strokes.length > held) { strokes.pop(); replay(); changed(); } };
  const brushSize = make('label', 'act-size', phrase('region.brush'));
  brushSize.append(size);
  const layerOf = async url => {
    const image = new Image(), layer = make('canvas');
    image.src = url;
    await image.decode();
    layer.width = width; layer.height = height;
    const pen = layer.getContext('2d');
    pen.drawImage(image, 0, 0, width, height);
    const data = pen.getImageData(0, 0, width, height);
    for (let at = 0; at < data.data.length; at += 4) {
      data.data[at + 3] = data.data[at] * data.data[at + 3] / 255;
      data.data.set([201, 96, 47], at);
    }
    pen.putImageData(data, 0, 0);
    return layer;
  };
  const hold = stroke => { strokes.push(stroke); held = strokes.length; replay(); };
  stage.append(canvas, ring);
  return {
    canvas, stage, hold,
    tools: group(phrase('region.brush'), ...modes, brushSize, button(phrase('button.undo'), undo),
      button(phrase('region.invert'), () => add({all: 'invert'})),
      button(phrase('region.clear'), () => add({all: 'clear'}))),
    begin: (wide, high) => {
      width = canvas.width = wide;
      height = canvas.height = high;
      stage.style.aspectRatio = `${wide} / ${high}`;
      stage.style.setProperty('--shape', wide / high);
      size.max = Math.max(256, Math.round(Math.min(wide, high) / 2));
      size.value = Math.round(Math.min(wide, high) / 8);
      strokes = []; held = 0; at = going = null;
      choose(false); show();
    },
    over: url => { stage.style.backgroundImage = url ? `url(${JSON.stringify(url)})` : ''; },
    holdMask: async url => hold({layer: await layerOf(url)}),  // what was there is not undone
    // The least and most opacity, and the mask in grey as a data URL.
    mask: () => {
      const data = brush.getImageData(0, 0, width, height), pixels = data.data;
      let least = 255, most = 0;
      for (let at = 0; at < pixels.length; at += 4) {
        const share = pixels[at + 3];
        least = Math.min(least, share); most = Math.max(most, share);
        pixels[at] = pixels[at + 1] = pixels[at + 2] = share;
        pixels[at + 3] = 255;
      }
      const url = () => {
        const grey = make('canvas');
        grey.width = width; grey.height = height;
        grey.getContext('2d').putImageData(data, 0, 0);
        return grey.toDataURL('image/png');
      };
      return {least, most, url};
    },
    press: event => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z') return undo(), true;
      if (event.ctrlKey || event.metaKey || event.altKey) return false;
      const by = {'[': -8, ']': 8}[event.key];
      if (by) { size.value = Number(size.value) + by; show(); return true; }
      if (event.target !== canvas) return false;
      const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      const by2 = Math.max(4, size.value / 4);
      at ??= [width / 2, height / 2];
      if (step) at = [within(at[0] + step[0] * by2, 0, width), within(at[1] + step[1] * by2, 0, height)];
      else if (event.key === ' ') add({points: [[...at]], size: Number(size.value), erase: erasing});
      else if (event.key.toLowerCase() === 'e') choose(!erasing);
      else return false;
      show();
      return true;
    },
  };
};
