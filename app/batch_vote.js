// Votes between two pictures that differ in their LoRAs alone. Who is who is not said before the result.
const root = element.querySelector('.vote');
const part = name => root.querySelector(`.${name}`);
let shown = null, busy = false, asked = 0, job = 0;

const make = (tag, className = '', text = '') => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== '') made.textContent = text;
  return made;
};
const percent = share => `${Math.round(share * 100)} %`;
const row = one => {
  const made = make('li'), bar = make('span', 'bar'), range = make('i', 'range'), middle = make('i', 'middle');
  range.style.left = `${one.low * 100}%`;
  range.style.width = `${(one.high - one.low) * 100}%`;
  middle.style.left = `${one.share * 100}%`;
  bar.append(range, middle);
  bar.title = phrase('vote.share', {share: percent(one.share), low: percent(one.low), high: percent(one.high)});
  made.append(make('b', '', one.label), bar, make('span', 'share', `${percent(one.share)} (${percent(one.low)}–${percent(one.high)})`),
    make('span', 'votes', phraseNum('vote.votes', one.votes)));
  return made;
};
const draw = answer => {
  part('said').textContent = answer.problem ?? '';
  if (answer.problem) return;
  shown = answer;
  root.hidden = !answer.pair;
  if (!answer.pair) return;
  root.querySelectorAll('.side img').forEach((image, place) => { image.src = answer.pair[place]; });
  part('prompt').textContent = answer.prompt;
  root.dataset.turn = answer.turn;
  part('result').textContent = answer.sentence;
  part('strengths').replaceChildren(...answer.num ? answer.rows.map(row) : []);
  part('use').hidden = !answer.winner;
  root.querySelector('[data-won=undo]').disabled = !answer.canUndo;
};
const look = async () => {
  const turn = ++asked;
  let answer;
  try { answer = await server.match({job}); } catch { return; }
  if (turn === asked) answer.problem ? root.hidden = true : draw(answer);
};
const vote = async won => {
  if (busy || !shown?.pair) return;
  busy = true;
  ++asked;
  try { draw(await server.cast({job, turn: shown.turn, won})); }
  catch { part('said').textContent = phrase('vote.not_kept'); }
  busy = false;
};
root.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.dataset.won) vote(button.dataset.won);
  else if (button?.classList.contains('use') && shown?.winner) trigger('open', {opens: shown.winner});
});
const KEYS = {ArrowLeft: 'left', ArrowRight: 'right', ArrowDown: 'tie', t: 'tie', s: 'skip', u: 'undo'};
element.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !KEYS[event.key]) return;
  event.preventDefault();
  event.stopPropagation();
  vote(KEYS[event.key]);
});
const heard = () => {
  const value = props.value;
  if (!value?.job) { root.hidden = true; return; }
  job = value.job;
  look();
};
watch('value', heard);
heard();
