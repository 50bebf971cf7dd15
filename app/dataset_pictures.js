// The Dataset tab's overlay: a picture is cropped, or its mask painted. `dataset_crop.js` and `paint.js` stand before it.
//
// Which picture is open is what the caption's box belongs to; the server looks its name up and says if it was changed.
const dialog = element.querySelector('dialog'), acts = element.querySelector('.picture-acts');
const part = name => dialog.querySelector(`.act-${name}`);
let opened = {dataset: '', name: ''}, edited = null, tool = null, opener = null, touched = false;
const say = text => { part('said').textContent = text; };
const changed = () => { touched = true; say(''); };

const masking = () => {
  const paint = painting(phrase('picture.mask_to_paint'), changed);
  return {
    key: 'mask', title: phrase('picture.mask'), use: phrase('picture.save_mask'), hint: phrase('picture.mask_hint'),
    begin: async picture => {
      paint.begin(...picture.painted);
      paint.over(picture.url);
      if (picture.mask) await paint.holdMask(picture.mask);
    },
    body: () => [paint.stage, paint.tools],
    call: () => ['paint', {url: paint.mask().url()}],
    press: paint.press,
    first: () => paint.canvas,
  };
};
const tools = {crop: cropping(changed), mask: masking()};

const open = async key => {
  if (!opened.name || dialog.open) return;
  edited = {dataset: opened.dataset, name: opened.name};
  tool = tools[key];
  opener = document.activeElement;
  touched = false;
  dialog.querySelector('h2').textContent = `${tool.title}: ${edited.name}`;
  part('hint').textContent = tool.hint;
  part('use').textContent = tool.use;
  part('body').replaceChildren(...tool.body());
  part('body').inert = part('use').disabled = true;
  say(phrase('picture.opening'));
  dialog.showModal();
  try {
    const picture = await server.look(edited);
    if (picture.problem) throw new Error(picture.problem);
    edited.version = picture.version;
    await tool.begin(picture);
    part('body').inert = part('use').disabled = false;
    say('');
    tool.first().focus();
  } catch (error) {
    say(error.message || phrase('problems.no_answer'));
  }
};
const use = async () => {
  if (part('use').disabled) return;
  if (!touched) return close();
  part('use').disabled = true;
  try {
    const [name, asked] = tool.call(), answer = await server[name]({...edited, ...asked});
    if (answer.problem) throw new Error(answer.problem);
    touched = false;
    close();
    window.velaturaDataset.changed(edited.dataset);
  } catch (error) {
    say(error.message || phrase('problems.no_answer'));
  } finally {
    part('use').disabled = false;
  }
};
const close = () => dialog.close();
dialog.addEventListener('close', () => opener?.focus());
dialog.addEventListener('cancel', event => {
  if (!touched) return;
  event.preventDefault();
  say(phrase('picture.not_saved', {act: tool.use}));
});
part('close').addEventListener('click', close);
part('cancel').addEventListener('click', close);
part('use').addEventListener('click', use);
acts.addEventListener('click', event => {
  const pressed = event.target.closest('button');
  if (pressed?.dataset.tool) open(pressed.dataset.tool);
  else if (pressed) window.velaturaDataset.flip([opened.name]);
});
// Before the page's own keys, which mean something else.
window.velaturaPictureKeys ??= (window.addEventListener('keydown', event => window.velaturaPicture?.press(event), true), true);
window.velaturaPicture = {
  opened: value => {
    opened = value ? {...value} : opened;
    for (const one of acts.querySelectorAll('button')) one.disabled = !opened.name;
  },
  press: event => {
    if (!dialog.open) return;
    event.stopPropagation();
    if (!part('body').inert && tool.press(event)) event.preventDefault();
    else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) use();
  },
};
