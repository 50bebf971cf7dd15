// How far a job is, in the window's title; and that it ended while nobody looked: there until somebody looks again, and
// where it was asked for by a notice of the browser and a sound. Names are text and nothing else in all of them.
const control = element.querySelector('button'), WANTED = 'velatura-tell-done', TOLD = 'velatura-told';
let running = null, unseen = null, since = null, audio = null;

// The title.
const isLooked = () => !document.hidden && document.hasFocus();
const words = job => job.failed ? phrase('done.failed', {name: job.name}) : phrase('done.finished', {name: job.name});
const retitle = () => {
  const parts = [running && phrase('done.running', {percent: running.percent, name: running.name}), unseen && words(unseen)].filter(Boolean);
  const title = parts.length ? phrase('done.title', {what: parts.join(' · ')}) : phrase('done.page');
  if (document.title !== title) document.title = title;
};
const seen = () => {
  if (!isLooked()) return;
  unseen = null;
  retitle();
};
for (const kind of ['visibilitychange', 'pointerdown', 'keydown']) document.addEventListener(kind, seen);
window.addEventListener('focus', seen);

// The sound: two notes, up for what is done and down for what failed. A browser lets a page sound once it was used, so
// that the context is made then; between sounds it rests, as one that plays nothing costs power too.
const isWanted = () => localStorage.getItem(WANTED) === 'on';
const wake = () => {
  if (!isWanted() || audio || !window.AudioContext) return;
  audio = new AudioContext();
  audio.suspend();
};
const ring = async failed => {
  if (!audio) return;
  await audio.resume();
  for (const [place, pitch] of (failed ? [660, 440] : [660, 880]).entries()) {
    const at = audio.currentTime + place * 0.2, tone = audio.createOscillator(), volume = audio.createGain();
    tone.frequency.value = pitch;
    volume.gain.setValueAtTime(0.0001, at);
    volume.gain.exponentialRampToValueAtTime(0.15, at + 0.02);
    volume.gain.exponentialRampToValueAtTime(0.0001, at + 0.35);
    tone.connect(volume).connect(audio.destination);
    tone.start(at);
    tone.stop(at + 0.4);
  }
  setTimeout(() => audio.suspend(), 1000);
};
for (const kind of ['pointerdown', 'keydown']) document.addEventListener(kind, wake);

// The notice.
const mayNotify = () => window.Notification?.permission === 'granted';
const notify = job => {
  try {
    const notice = new Notification(phrase('done.page'), {body: words(job), tag: `velatura-${job.at}`});
    notice.onclick = () => { window.focus(); notice.close(); };
  } catch { /* Android's Chrome has no notices of a page; the sound and the title are there. */ }
};

// Of several pages of a browser the first that hears of an end tells of it, or none where one is looked at.
const isFirst = job => {
  const first = Number(localStorage.getItem(TOLD) ?? 0) < job.at;
  if (first) localStorage.setItem(TOLD, job.at);
  return first;
};
document.addEventListener('velatura-jobs', ({detail}) => {
  const news = since === null ? [] : detail.ended.filter(job => job.at > since);
  since = Math.max(since ?? 0, ...detail.ended.map(job => job.at));
  running = detail.running;
  const untold = news.filter(isFirst);
  if (news.length && !isLooked()) {
    unseen = news.find(job => job.failed) ?? news[0];
    if (untold.length && isWanted()) {
      ring(untold.some(job => job.failed));
      if (mayNotify()) untold.forEach(notify);
    }
  }
  retitle();
});

// The control: off until it is pressed, which alone asks the browser for its permission.
const show = () => {
  control.setAttribute('aria-pressed', isWanted());
  control.title = isWanted() && !mayNotify() ? phrase('done.sound_only') : phrase('done.help');
};
control.addEventListener('click', async () => {
  localStorage.setItem(WANTED, isWanted() ? 'off' : 'on');
  show();
  if (!isWanted()) return;
  wake();
  ring(false);
  if (window.Notification?.permission === 'default') await Notification.requestPermission();
  show();
});
window.addEventListener('storage', show);
show();
