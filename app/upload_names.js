// Gradio 6.31 shows the names of files that it refuses as HTML. Where a tag would begin in one, it gets another
// character before Gradio sees it, however the file comes: chosen, dropped or pasted.
if (!window.velaturaNames) {
  window.velaturaNames = true;
  const isTag = files => [...files ?? []].some(file => file.name.includes('<'));
  const renamed = files => {
    const list = new DataTransfer();
    for (const file of files) {
      list.items.add(new File([file], file.name.replaceAll('<', '_'), {type: file.type, lastModified: file.lastModified}));
    }
    return list;
  };
  window.addEventListener('change', event => {
    const input = event.target;
    if (input.type === 'file' && isTag(input.files)) input.files = renamed(input.files).files;
  }, true);
  for (const [kind, Kind, name] of [['drop', DragEvent, 'dataTransfer'], ['paste', ClipboardEvent, 'clipboardData']]) {
    window.addEventListener(kind, event => {
      const given = event[name], entries = [...given?.items ?? []].map(item => item.webkitGetAsEntry?.());
      if (!isTag(given?.files) || entries.some(entry => entry?.isDirectory)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const again = {bubbles: true, cancelable: true, composed: true, [name]: renamed(given.files)};
      event.target.dispatchEvent(new Kind(kind, again));
    }, true);
  }
}
