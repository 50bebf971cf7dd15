// The Stack tab's overlay: a region is painted, a schedule drawn as a curve, blocks are set by sliders.
//
// It reads the text box of the row whose button was pressed and writes into it; what it can't show it leaves alone. What
// comes from the server is put in as text.
const dialog = element.querySelector('dialog');
const part = name => dialog.querySelector(`.act-${name}`);
const box = key => document.querySelector(`#layer-${row}-${key} textarea, #layer-${row}-${key} input`);
const number = (id, other) => {
  const value = Number(document.querySelector(`#${id} input[type=number], #${id} input`)?.value);
  return value > 0 ? value : other;
};
const rounded = value => String(Math.round(value * 1e6) / 1e6);
const NUMBER = /^-?\d{0,4}\.?\d{1,6}$/;  // as `strength` reads it
const cents = value => Math.round(value * 100) / 100;
let row = 0, tool = null, opener = null, touched = false;
const say = text => { part('said').textContent = text; };
const changed = () => { touched = true; say(''); };

// Schedules: points over the denoising, as `trainer.render.strength` spells them.

const schedule = () => {
  const LEFT = 44, RIGHT = 556, TOP = 14, BOTTOM = 254, MOST = 2, POINTS = 64;
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const draw = (tag, parent, settings) => {
    const made = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(settings)) made.setAttribute(name, value);
    parent.append(made);
    return made;
  };
  let points = [], linear = true, chosen = 0, going = -1;
  svg.setAttribute('viewBox', '0 0 570 286');
  svg.setAttribute('role', 'group');
  svg.setAttribute('aria-label', phrase('region.schedule'));
  const grid = draw('g', svg, {class: 'act-grid'}), line = draw('path', svg, {class: 'act-line'}), dots = draw('g', svg, {});
  const readout = make('p', 'act-readout');
  const x = share => LEFT + share * (RIGHT - LEFT), y = factor => BOTTOM - factor / MOST * (BOTTOM - TOP);
  const stepOf = share => 1 + Math.round(share * (Math.max(1, number('stack-steps', 25)) - 1));
  const wordsOf = ([share, factor]) =>
    phrase('region.factor_at', {step: stepOf(share), all: number('stack-steps', 25), factor: rounded(factor)});
  const parse = text => {
    const [kind, ...parts] = text.split(/\s+/);
    let read;
    if (!text) read = [[0, 1], [1, 1]];
    else if (kind === 'linear' && parts.length === 2 && parts.every(one => NUMBER.test(one)))
      read = [[0, Number(parts[0])], [1, Number(parts[1])]];
    else if (['steps', 'points'].includes(kind) && parts.length && parts.length <= POINTS
      && parts.every(one => one.split(':').length === 2 && one.split(':').every(side => NUMBER.test(side))))
      read = parts.map(one => one.split(':').map(Number));
    if (!read || read.some(([share, factor], index) => share < 0 || share > 1 || factor < 0 || factor > MOST
      || index > 0 && share <= read[index - 1][0])) return null;
    return {points: read, linear: kind !== 'steps'};
  };
  const spell = () => {
    if (points.every(point => point[1] === 1)) return '';
    if (linear && points.length === 2 && points[0][0] === 0 && points[1][0] === 1)
      return `linear ${rounded(points[0][1])} ${rounded(points[1][1])}`;
    return `${linear ? 'points' : 'steps'} ${points.map(point => point.map(rounded).join(':')).join(' ')}`;
  };
  const show = () => {
    while (dots.childElementCount > points.length) dots.lastChild.remove();
    while (dots.childElementCount < points.length) draw('circle', dots, {r: 8, tabindex: 0, role: 'slider',
      'aria-valuemin': 0, 'aria-valuemax': MOST, class: 'act-dot'});
    [...dots.children].forEach((dot, index) => {
      const [share, factor] = points[index];
      Object.entries({cx: x(share), cy: y(factor), 'aria-label': phrase('region.point', {number: index + 1}), 'aria-valuenow': factor,
        'aria-valuetext': wordsOf(points[index])}).forEach(([name, value]) => dot.setAttribute(name, value));
      dot.classList.toggle('chosen', index === chosen);
    });
    let path = `M${LEFT} ${y(points[0][1])}`;
    for (const [share, factor] of points) path += linear ? `L${x(share)} ${y(factor)}` : `H${x(share)}V${y(factor)}`;
    line.setAttribute('d', `${path}H${RIGHT}`);
    kinds.forEach((kind, index) => kind.setAttribute('aria-pressed', linear === (index === 0)));
    readout.textContent = phrase('region.points_help', {point: wordsOf(points[chosen] ?? points[0])});
  };
  const frame = () => {
    grid.replaceChildren();
    for (const factor of [0, .5, 1, 1.5, 2]) {
      draw('line', grid, {x1: LEFT, x2: RIGHT, y1: y(factor), y2: y(factor), class: factor === 1 ? 'one' : ''});
      draw('text', grid, {x: LEFT - 8, y: y(factor) + 4, 'text-anchor': 'end'}).textContent = rounded(factor);
    }
    for (const share of number('stack-steps', 25) < 5 ? [0, 1] : [0, .25, .5, .75, 1])
      draw('text', grid, {x: x(share), y: BOTTOM + 22, 'text-anchor': 'middle'}).textContent =
        share ? stepOf(share) : phrase('run.step', {step: stepOf(share)});
  };
  const move = (index, share, factor) => {
    const least = index ? points[index - 1][0] + .01 : 0, most = index < points.length - 1 ? points[index + 1][0] - .01 : 1;
    if (least > most) share = points[index][0];
    else share = cents(within(cents(share), Math.ceil(least * 100 - 1e-6) / 100, Math.floor(most * 100 + 1e-6) / 100));
    points[index] = [share, cents(within(factor, 0, MOST))];
    chosen = index;
    changed();
    show();
  };
  const remove = index => {
    if (points.length < 2) return;
    points.splice(index, 1);
    chosen = within(index, 0, points.length - 1);
    changed();
    show();
    dots.children[chosen].focus();
  };
  const place = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [within((at.x - LEFT) / (RIGHT - LEFT), 0, 1), within((BOTTOM - at.y) / (BOTTOM - TOP) * MOST, 0, MOST)];
  };
  svg.addEventListener('pointerdown', event => {
    if (event.button > 0) return;
    event.preventDefault();
    going = [...dots.children].indexOf(event.target);
    if (going < 0) {
      const [share, factor] = place(event).map(cents);
      if (points.length >= POINTS || points.some(point => Math.abs(point[0] - share) < .02)) return;
      going = points.findIndex(point => point[0] > share);
      if (going < 0) going = points.length;
      points.splice(going, 0, [share, factor]);
      changed();
    }
    chosen = going;
    show();
    dots.children[going].focus();
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener('pointermove', event => { if (going >= 0 && event.buttons) move(going, ...place(event)); });
  for (const kind of ['pointerup', 'pointercancel']) svg.addEventListener(kind, () => { going = -1; });
  // The pointer is held by the drawing, so a double click is of the point that its first click chose.
  svg.addEventListener('dblclick', event => {
    const [share, factor] = place(event), point = points[chosen];
    if (Math.hypot(x(share) - x(point[0]), y(factor) - y(point[1])) < 12) remove(chosen);
  });
  svg.addEventListener('focusin', event => {
    const index = [...dots.children].indexOf(event.target);
    if (index >= 0 && index !== chosen) { chosen = index; show(); }
  });
  const set = text => { ({points, linear} = parse(text)); chosen = 0; changed(); show(); };
  const kinds = [[phrase('region.lines'), true], [phrase('word.steps'), false]].map(([word, on]) =>
    button(word, () => { linear = on; changed(); show(); }));
  const presets = [[phrase('region.constant'), ''], [phrase('region.fade_in'), 'linear 0 1'],
    [phrase('region.fade_out'), 'linear 1 0'], [phrase('region.first_half'), 'steps 0:1 0.5:0'],
    [phrase('region.second_half'), 'steps 0:0 0.5:1']].map(([word, text]) => button(word, () => set(text)));
  return {
    key: 'schedule', title: phrase('region.when'), hint: phrase('region.when_hint'),
    begin: text => {
      const read = parse(text);
      ({points, linear} = read ?? parse(''));
      chosen = 0;
      frame();
      show();
      return Boolean(read);
    },
    body: () => [svg, readout, group(phrase('library.presets'), ...presets), group(phrase('region.between_points'), ...kinds)],
    text: spell,
    press: event => {
      const index = [...dots.children].indexOf(event.target);
      if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return false;
      const by = {ArrowLeft: [-.01, 0], ArrowRight: [.01, 0], ArrowUp: [0, .05], ArrowDown: [0, -.05]}[event.key];
      const times = event.shiftKey ? 5 : 1;
      if (by) move(index, points[index][0] + by[0] * times, points[index][1] + by[1] * times);
      else if (event.key === 'Delete' || event.key === 'Backspace') remove(index);
      else return false;
      return true;
    },
    first: () => dots.children[chosen],
  };
};

// Blocks: a slider for each group of the LoRA's own blocks.

const blocks = () => {
  const sliders = make('div', 'act-sliders'), presets = group(phrase('library.presets'));
  let groups = [], factors = [];
  const inherited = index => groups[index].inside < 0 ? 1 : factors[groups[index].inside];
  const parse = text => {
    const values = groups.map(one => one.patterns.map(() => 1));
    for (const line of text.split('\n').map(one => one.trim()).filter(Boolean)) {
      const cut = line.lastIndexOf('='), pattern = line.slice(0, cut).trim(), value = line.slice(cut + 1).trim();
      let known = false;
      if (cut < 0 || !NUMBER.test(value) || value < 0 || value > 2) return null;
      groups.forEach((one, index) => one.covers.forEach((covers, place) => {
        if (!covers.includes(pattern)) return;
        values[index][place] = Number(value);
        known = true;
      }));
      if (!known) return null;
    }
    return values.every(one => one.every(value => value === one[0])) ? values.map(one => one[0]) : null;
  };
  const spell = () => groups.flatMap((one, index) =>
    factors[index] === inherited(index) ? [] : one.patterns.map(pattern => `${pattern}=${rounded(factors[index])}`)).join('\n');
  const show = () => [...sliders.children].forEach((made, index) => {
    made.slider.value = factors[index];
    made.slider.setAttribute('aria-valuetext', rounded(factors[index]));
    made.value.textContent = rounded(factors[index]);
  });
  const newSlider = (one, index) => {
    const made = make('div', 'act-slider');
    made.slider = make('input');
    Object.assign(made.slider, {type: 'range', min: 0, max: 2, step: .05});
    made.slider.setAttribute('aria-label', one.label);
    made.slider.setAttribute('aria-orientation', 'vertical');
    made.slider.addEventListener('input', () => {
      const before = factors[index];
      factors[index] = Number(made.slider.value);
      // What lies inside goes along until it is moved itself.
      groups.forEach((other, place) => { if (other.inside === index && factors[place] === before) factors[place] = factors[index]; });
      changed();
      show();
    });
    made.value = make('span', 'act-factor');
    made.append(made.value, made.slider, make('span', '', one.label));
    return made;
  };
  const tool = {
    key: 'blocks', title: phrase('region.which'), hint: phrase('region.which_hint'),
    begin: async text => {
      groups = []; factors = [];
      sliders.replaceChildren();
      presets.replaceChildren();
      const answer = await server.blocks(named());
      tool.fixed = Boolean(answer.problem);
      if (answer.problem) throw new Error(answer.problem);
      groups = answer.groups;
      const read = parse(text);
      factors = read ?? groups.map(() => 1);
      sliders.replaceChildren(...groups.map(newSlider));
      presets.replaceChildren(...answer.presets.map(one =>
        button(one.name, () => { factors = [...one.factors]; changed(); show(); })));
      show();
      return Boolean(read);
    },
    body: () => [sliders, presets],
    text: spell,
    press: () => false,
    first: () => sliders.querySelector('input'),
  };
  return tool;
};

// The three, and the overlay they share.

const tools = {region: region(), schedule: schedule(), blocks: blocks()};
const named = () => document.querySelector(`#lora-${row} input`)?.value || phrase('stack.lora', {number: row});
const begin = async text => {
  say('');
  part('anew').hidden = true;
  part('body').inert = false;
  try {
    if (await tool.begin(text)) return;
    say(phrase('region.cannot_draw', {text: text.length > 120 ? `${text.slice(0, 120)}…` : text}));
    part('anew').hidden = false;
  } catch (error) {
    say(error.message);
    part('anew').hidden = !text || tool.fixed;
  }
  part('body').inert = true;
};
const open = async pressed => {
  row = Number(pressed.dataset.row);
  tool = tools[pressed.dataset.act];
  if (!tool || !box(tool.key)) return;
  opener = pressed;
  touched = false;
  dialog.querySelector('h2').textContent = `${tool.title}: ${named()}`;
  part('hint').textContent = tool.hint;
  part('body').replaceChildren(...tool.body());
  dialog.dataset.act = tool.key;
  dialog.showModal();
  await begin(box(tool.key).value.trim());
  part('body').inert ? part('close').focus() : tool.first()?.focus();
};
const use = async () => {
  if (!touched || part('use').disabled) return close();
  part('use').disabled = true;
  try {
    const text = await tool.text(), field = box(tool.key);
    close();
    if (!field || field.value === text) return;
    field.value = text;
    for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}));
    trigger('used', {row});
  } catch (error) {
    say(error.message || phrase('problems.no_answer'));
  } finally {
    part('use').disabled = false;
  }
};
const close = () => dialog.close();
dialog.addEventListener('close', () => opener?.focus());
part('close').addEventListener('click', close);
part('cancel').addEventListener('click', close);
part('use').addEventListener('click', use);
part('anew').addEventListener('click', async () => { await begin(''); changed(); tool.first()?.focus(); });
const focusable = () => [...dialog.querySelectorAll('button, input, canvas, [tabindex]')]
  .filter(one => one.offsetParent !== null || one.ownerSVGElement)
  .filter(one => !one.disabled && one.tabIndex >= 0 && !one.closest('[inert]'));
// Before the page's own keys, which mean something else.
window.velaturaActKeys ??= (window.addEventListener('keydown', event => window.velaturaAct?.press(event), true), true);
window.velaturaActClicks ??= (document.addEventListener('click', event => {
  const pressed = event.target.closest?.('[data-act][data-row]');
  if (pressed) window.velaturaAct?.open(pressed);
  const fold = event.target.closest?.('[data-texts]'), texts = fold && document.getElementById(`as-text-${fold.dataset.texts}`);
  if (texts) fold.setAttribute('aria-expanded', texts.classList.toggle('open'));
}), true);
window.velaturaAct = {
  open,
  press: event => {
    if (!dialog.open) return;
    event.stopPropagation();
    if (event.key === 'Tab') {
      const list = focusable(), index = list.indexOf(document.activeElement);
      const next = list[(index + (event.shiftKey ? -1 : 1) + list.length) % list.length];
      event.preventDefault();
      next?.focus();
    } else if (!part('body').inert && tool.press(event)) event.preventDefault();
    else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) use();
  },
};
