// A file that is dropped anywhere on the page is handed to the Library's own drop zone; a single one is then opened. A
// picture that is pasted outside of boxes for text goes the same way. Several pictures in front of Stack go to its zone,
// where one is opened and the others can be chosen; if none carries a stack they are the Library's after all.
if (!window.velaturaDrop) {
  window.velaturaDrop = true;
  const hasFiles = event => [...event.dataTransfer?.types ?? []].includes('Files');
  // Where Gradio takes files itself, and over a dialog.
  const isOwn = event => event.target.closest?.('button:has(input[type=file])') || document.querySelector('dialog[open]');
  const found = async (find, seconds) => {
    for (let turn = 0; turn < seconds * 10; turn++) {
      const part = find();
      if (part) return part;
      await new Promise(done => setTimeout(done, 100));
    }
    return null;
  };
  let inStack = null;  // what was handed to Stack, until it is known whether any of it opens
  const handToStack = files => {
    const input = document.querySelector('#tab-stack')?.offsetParent && document.querySelector('#recipe-png input[type=file]');
    if (!input || files.length < 2 || [...files].some(file => !/^image\/(png|jpeg|webp)$/.test(file.type))) return false;
    inStack = files;
    input.files = files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
    return true;
  };
  window.velaturaStackTook = isAny => {
    const files = inStack;
    inStack = null;
    if (files && !isAny) hand(files, true);
  };
  const hand = async (files, notInStack = false) => {
    const given = new DataTransfer();
    for (const file of files) given.items.add(file);
    if (!given.files.length || !notInStack && handToStack(given.files)) return;
    [...document.querySelectorAll('button[role=tab]')].find(tab => tab.textContent.trim() === phrase('page.library'))?.click();
    const input = await found(() => document.querySelector('#library-drop input[type=file]'), 20);
    if (!input) return;
    document.querySelectorAll('#library-arrival .arrivals').forEach(old => { old.dataset.old = ''; });
    input.files = given.files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
    if (given.files.length > 1) return;
    const arrived = await found(() => document.querySelector('#library-arrival .arrivals:not([data-old])'), 600);
    const open = arrived && await found(() => document.querySelector('#open-arrival'), 2);
    if (open?.offsetParent) open.click();
  };
  const takesText = part => part.isContentEditable || /^(textarea|select)$/i.test(part.tagName)
    || /^input$/i.test(part.tagName) && !/^(checkbox|radio|range|button|file)$/i.test(part.type);
  let over = null;
  document.addEventListener('dragover', event => {
    if (!hasFiles(event) || isOwn(event)) return;
    event.preventDefault();
    document.body.dataset.drop = phrase('library.drop_anywhere');
    clearTimeout(over);
    over = setTimeout(() => { delete document.body.dataset.drop; }, 300);
  });
  document.addEventListener('drop', event => {
    if (!hasFiles(event) || isOwn(event)) return;
    event.preventDefault();
    hand(event.dataTransfer.files);
  });
  document.addEventListener('paste', event => {
    const pictures = [...event.clipboardData?.files ?? []].filter(file => file.type.startsWith('image/'));
    if (!pictures.length || event.defaultPrevented || takesText(event.target)) return;
    if (document.querySelector('dialog[open]')) return;
    event.preventDefault();
    hand(pictures);
  });
}
