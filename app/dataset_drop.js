// A folder dropped on the Dataset tab's upload: its pictures and captions go in as if each had been chosen.
//
// Gradio takes files only. Of the same name in two folders, each gets its folder's name in front.
const fileOf = entry => new Promise((done, failed) => entry.file(done, failed));
const inside = async folder => {
  const reader = folder.createReader(), found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return found;
    found.push(...some);
  }
};
const dropped = async entry => {
  if (/^(\.|__)/.test(entry.name)) return [];
  if (entry.isFile) return [{path: entry.fullPath.split('/').slice(2), file: await fileOf(entry)}];
  return (await Promise.all((await inside(entry)).map(dropped))).flat();
};
// The captions of an imagefolder, as files beside its pictures.
const rowsOf = async ({path, file}) => (await file.text()).split('\n').flatMap(line => {
  try {
    const {file_name: name, text} = JSON.parse(line);
    const place = [...path.slice(0, -1), ...name.split('/')];
    return [{path: [...place.slice(0, -1), place.at(-1).replace(/\.\w+$/, '.txt')], text: String(text)}];
  } catch {
    return [];
  }
});
const taken = async (entries, accepted) => {
  const all = (await Promise.all(entries.map(dropped))).flat();
  const rows = (await Promise.all(all.filter(one => one.file.name === 'metadata.jsonl').map(rowsOf))).flat();
  const stems = new Set(all.filter(one => /\.(txt|caption)$/i.test(one.file.name)).map(one => one.path.join('/').replace(/\.\w+$/, '')));
  const captions = rows.filter(row => !stems.has(row.path.join('/').replace(/\.\w+$/, '')));
  const found = [...all.filter(one => accepted.some(suffix => one.file.name.toLowerCase().endsWith(suffix))),
    ...captions.map(({path, text}) => ({path, file: new File([text], path.at(-1))}))];
  const folders = new Map();
  for (const {path} of found) {
    const stem = path.at(-1)?.replace(/\.\w+$/, '');
    folders.set(stem, (folders.get(stem) ?? new Set()).add(path.slice(0, -1).join('/')));
  }
  return found.map(({path, file}) => {
    const isTwice = folders.get(path.at(-1)?.replace(/\.\w+$/, ''))?.size > 1;
    return isTwice ? new File([file], path.join('-')) : file;
  });
};
document.addEventListener('drop', async event => {
  const input = event.target.closest?.('#dataset-files')?.querySelector('input[type=file]');
  const entries = [...event.dataTransfer?.items ?? []].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!input || !entries.some(entry => entry.isDirectory)) return;
  event.preventDefault();
  event.stopPropagation();
  const list = new DataTransfer();
  for (const file of await taken(entries, input.accept.split(',').map(suffix => suffix.trim().toLowerCase()))) list.items.add(file);
  if (!list.files.length) {
    root.querySelectorAll('.working :is(progress, button)').forEach(one => { one.hidden = true; });
    part('working').hidden = false;
    part('done').textContent = phrase('dataset.empty_folder');
    return;
  }
  input.files = list.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
}, true);
