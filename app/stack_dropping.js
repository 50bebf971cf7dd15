// The row of the pictures that were dropped on Stack together: which one is open, and the others to choose.
const root = element.querySelector('.several'), part = name => root.querySelector(`.several-${name}`);
const made = (tag, text = '') => Object.assign(document.createElement(tag), {textContent: text});
let pictures = '';
const heard = () => {
  const shown = props.value ?? {};
  root.hidden = !shown.pictures;
  if (shown.pictures || shown.none) window.velaturaStackTook?.(!shown.none);
  if (root.hidden) return;
  part('says').textContent = shown.says;
  // Made anew only when they are others, so that the one that was pressed keeps the focus.
  const now = JSON.stringify(shown.pictures);
  if (now !== pictures) {
    pictures = now;
    part('pictures').replaceChildren(...shown.pictures.map((one, index) => {
      const button = made('button');
      button.type = 'button';
      button.title = one.name;
      button.dataset.index = index;
      button.innerHTML = one.picture;  // HTML of ours (`cards.picture`)
      button.append(made('span', one.name));
      return button;
    }));
  }
  for (const button of part('pictures').children)
    button.setAttribute('aria-pressed', Number(button.dataset.index) === shown.open);
  part('left').replaceChildren(...shown.left.map(line => made('li', line)));
};
root.addEventListener('click', event => {
  const index = event.target.closest('[data-index]')?.dataset.index;
  if (index !== undefined) trigger('choose', {index: Number(index)});
});
part('done').addEventListener('click', () => {
  root.hidden = true;
  document.querySelector('#recipe-png button')?.focus();
});
watch('value', heard);
heard();
