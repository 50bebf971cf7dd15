// What the overlays are made with; stands before the file of each, as one script with it.
const make = (tag, className = '', text = '') => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
};
const button = (text, act, className = '') => {
  const made = make('button', className, text);
  made.type = 'button';
  made.addEventListener('click', act);
  return made;
};
const group = (label, ...inside) => {
  const made = make('div', 'act-tools');
  made.setAttribute('role', 'group');
  made.setAttribute('aria-label', label);
  made.append(...inside);
  return made;
};
const within = (value, least, most) => Math.min(most, Math.max(least, value));
