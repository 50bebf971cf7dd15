// The row below Stack's recent pictures: which one was chosen, and what of it the desk takes.
const row = element.querySelector('.taking');
const heard = () => {
  const shown = props.value ?? {};
  row.hidden = !shown.of;
  if (row.hidden) return;
  row.querySelector('.taking-picture').innerHTML = shown.picture;  // HTML of ours (`cards.picture`)
  row.setAttribute('aria-label', shown.of);
  row.querySelector('.taking-picture').title = shown.of;
  row.querySelector('.taking-said').textContent = shown.said;
  for (const button of row.querySelectorAll('[data-take]'))
    button.setAttribute('aria-pressed', button.dataset.take === shown.what);
};
row.addEventListener('click', event => {
  const what = event.target.closest('[data-take]')?.dataset.take;
  if (what) trigger('take', {what});
});
watch('value', heard);
heard();
