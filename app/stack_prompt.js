// The Stack tab's prompts: Ctrl and an arrow change a weight, Esc cancels what is drawn, and a picture's text that is
// pasted may become a stack. What was pasted is put nowhere but into the prompt, by the browser itself.
const said = element.querySelector('.prompt-said'), MOST = 20, LONGEST = 1 << 17;  // as `emphasis` and `a1111_text`
const LONGEST_JSON = 1 << 20;
const prompt = () => document.querySelector('#stack-prompt textarea, #stack-prompt input');
const isPrompt = part => /^(textarea|input)$/i.test(part.tagName)
  && Boolean(part.closest('#stack-prompt, #stack-negative_prompt'));

// Weights. A change is the part of the text that another takes the place of, and what is selected in that.

const NUMBER = /^[+-]?(?:\d{1,4}\.?\d{0,12}|\.\d{1,12})$/;
const stepped = (weight, by) => within(Math.round((weight + by) * 100) / 100, -MOST, MOST) + 0;  // + 0: no -0

// `<lora:name:weight>`: the weight of the denoiser where there are two.
const tagChange = (text, start, end, by) => {
  for (const match of text.matchAll(/<([A-Za-z]\w{0,31}):([^<>\n]{1,300})>/g)) {
    const from = match.index, to = from + match[0].length;
    if (!(from < end && start < to || start === end && end === to)) continue;
    if (start < from || end > to || !['lora', 'lyco'].includes(match[1])) return start === end ? {} : null;
    const [name, ...parts] = match[2].split(':'), isKey = (part, key) => part.trim().startsWith(`${key}=`);
    let place = parts.findIndex(part => isKey(part, 'unet'));
    if (place < 0) place = parts.findLastIndex(part => !part.includes('='));
    if (place < 0) place = parts.findIndex(part => isKey(part, 'te'));
    if (place < 0) place = parts.push('1') - 1;
    const [, key, weight] = parts[place].match(/^([^=]*=)?(.*)$/s);
    if (!NUMBER.test(weight.trim())) return {};
    parts[place] = `${key ?? ''}${stepped(Number(weight), by)}`;
    const put = `<${[match[1], name, ...parts].join(':')}>`, at = Math.min(start, from + put.length);
    return {from, to, put, start: start === end ? at : from, end: start === end ? at : from + put.length};
  }
  return null;
};

// Where brackets open and are closed, in the order in which they are closed. A backslash makes one a letter.
const bracketPairs = text => {
  const opened = [], pairs = [];
  for (const {0: part, index} of text.matchAll(/\\.|[()]/gs)) {
    if (part === '(') opened.push(index);
    else if (part === ')' && opened.length) pairs.push([opened.pop(), index]);
  }
  return pairs;
};
const WEIGHED = /:[ ]{0,4}([+-]?(?:\d{1,4}\.?\d{0,6}|\.\d{1,6}))[ ]{0,4}$/;
const bracketChange = (text, [open, close], start, end, by) => {
  const inside = text.slice(open + 1, close), match = inside.match(WEIGHED);
  const words = match ? inside.slice(0, match.index) : inside, weight = stepped(match ? Number(match[1]) : 1.1, by);
  const first = weight === 1 ? open : open + 1, into = place => first + within(place - open - 1, 0, words.length);
  const put = weight === 1 ? words : `(${words}:${weight})`;
  return {from: open, to: close + 1, put, start: into(start), end: into(end)};
};
const WORD = /\$\{[^{}]*\}|__~?[\w*.\/-]+?__|(?:\\[()\[\]\\]|[^\s,.;:!?()\[\]{}<>|"\\$])+/g;
// Whether no bracket of a wildcard, a tag or a weight is left open, and no bar that parts alternatives would be taken in.
const isWhole = words => {
  let rest = words.replace(/\\./gs, '').replace(/<[^<>]*>/g, '');
  for (let depth = 0; depth < 32; depth++) rest = rest.replace(/\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)/g, '');
  return !/[<>{}|()\[\]]/.test(rest);
};
const wordChange = (text, start, end, by) => {
  let from = start, to = end;
  if (start === end) {
    const word = [...text.matchAll(WORD)].find(match => match.index <= start && start <= match.index + match[0].length);
    if (!word || /^(BREAK|AND)$/.test(word[0])) return null;
    [from, to] = [word.index, word.index + word[0].length];
    if (/^(\$\$|::)/.test(text.slice(to))) return null;  // how many, or how often, of a wildcard
  } else {
    while (from < to && /\s/.test(text[from])) from++;
    while (to > from && /\s/.test(text[to - 1])) to--;
  }
  const words = text.slice(from, to), shift = place => within(place, from, to) + 1;
  if (!words || !isWhole(words) || WEIGHED.test(words)) return null;
  const put = `(${words}:${stepped(1, by)})`;
  return {from, to, put, start: shift(start), end: shift(end)};
};
const isWithin = (text, start) => {
  const open = text.lastIndexOf('<', start - 1), close = text.indexOf('>', start);
  return open >= 0 && close >= 0 && /^<[A-Za-z]\w{0,31}:[^<>\n]*>$/.test(text.slice(open, close + 1));
};
const weightChange = (text, start, end, by) => {
  const pairs = bracketPairs(text);
  const around = pairs.filter(([open, close]) => open < start && end <= close).at(0);  // the innermost is closed first
  if (start === end) return around ? bracketChange(text, around, start, end, by) : wordChange(text, start, end, by);
  const whole = pairs.find(([open, close]) => open === start && close + 1 === end);
  if (whole) return bracketChange(text, whole, start, end, by);
  const words = around && text.slice(around[0] + 1, around[1]).replace(WEIGHED, '').trim();
  const isAll = around && words === text.slice(start, end).trim();
  return isAll ? bracketChange(text, around, start, end, by) : wordChange(text, start, end, by);
};

// Put in as if it were typed, so that the browser's own undo takes it back and Gradio hears of it.
const type = (box, {from, to, put, start, end}) => {
  if (box.maxLength >= 0 && box.value.length - (to - from) + put.length > box.maxLength) return;
  box.setSelectionRange(from, to);
  if (!document.execCommand('insertText', false, put)) {
    box.setRangeText(put, from, to);
    box.dispatchEvent(new Event('input', {bubbles: true}));
  }
  box.setSelectionRange(start, end);
};
const weigh = (event, by) => {
  const box = event.target, text = box.value, {selectionStart: start, selectionEnd: end} = box;
  const ofTag = tagChange(text, start, end, by), family = window.velaturaShelf?.family();
  let change = ofTag;
  if (!ofTag) {
    if (!family || isWithin(text, start)) return;
    if (Object.hasOwn(props.sentences, family)) {
      event.preventDefault();
      tell(phrase('stack.no_word_weights', {family: props.sentences[family]}));
      return;
    }
    change = weightChange(text, start, end, by);
  }
  event.preventDefault();
  if (change?.put !== undefined) type(box, change);
};

// The line below the prompts.

let offered = '';  // a text that was pasted, while it may become a stack
const clear = () => { offered = ''; said.replaceChildren(); };
const tell = words => { offered = ''; said.replaceChildren(words); };
const unified = text => text.replace(/\r\n?/g, '\n');
const isOfPicture = text => text.length <= LONGEST && /(?:^|\n)[ \t]{0,8}Steps: ?\d/.test(text)
  && /(?:^|[\n,])[ \t]{0,8}(?:Seed|Sampler|CFG scale|Size): ?\S/.test(text);
// A ComfyUI graph or a stack of ours, as JSON; the server tells which.
const isOfStack = text => text.length <= LONGEST_JSON && /^\s{0,100}\{/.test(text)
  && /"(?:class_type|last_node_id|adapters)"\s{0,8}:/.test(text);
const offer = text => {
  const use = button(phrase('stack.use_text'), () => {
    trigger('pasted', {text: offered});
    clear();
    prompt()?.focus();
  });
  const leave = button(phrase('stack.leave_text'), () => { clear(); prompt()?.focus(); });
  tell(make('span', '', isOfPicture(text) ? phrase('stack.text_of_picture') : phrase('stack.text_of_stack')));
  said.append(use, leave);
  offered = text;
};

// Esc belongs to what lies over the page, to an open list and to a row that is dragged before it is ours.
const isTaken = event => event.defaultPrevented || event.isComposing || document.fullscreenElement
  || document.querySelector('dialog[open], .block.fullscreen, .layer-all.lifted, #tab-stack input[aria-expanded=true]')
  || event.target.matches?.('input[type=search]') && event.target.value;
const onKey = event => {
  const by = {ArrowUp: .1, ArrowDown: -.1}[event.key];
  if (event.key === 'Escape' && !isTaken(event)) {
    const cancel = document.querySelector('button#cancel-render, #cancel-render button');
    if (cancel?.offsetParent && !cancel.disabled) cancel.click();
    else if (said.contains(event.target) || isPrompt(event.target)) clear();
  } else if (by && (event.ctrlKey || event.metaKey) && !event.altKey && !event.isComposing && isPrompt(event.target)) {
    weigh(event, event.shiftKey ? by / 2 : by);
  }
};
const onPaste = event => {
  if (!isPrompt(event.target) || !event.target.closest('#stack-prompt')) return;
  const text = event.clipboardData?.getData('text/plain') ?? '';
  if (isOfPicture(unified(text)) || isOfStack(text)) setTimeout(() => offer(unified(text)));  // once it stands in the prompt
};
// An offer goes when its text does, and other words when one goes on typing.
const onInput = event => {
  if (!isPrompt(event.target) || !said.firstChild) return;
  if (!offered || !event.target.value.includes(offered.trim().slice(0, 200))) clear();
};
for (const [kind, act, capture] of [['keydown', onKey, true], ['paste', onPaste, false], ['input', onInput, false]])
  document.addEventListener(kind, act, capture);
