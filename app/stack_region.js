// A region painted on the picture; a part of `stack_panel.js`, which stands after it. `paint.js` is the brush.
//
// Regions: the colour's opacity is the mask.

const region = () => {
  const paint = painting(phrase('region.to_be_painted'), () => changed());
  return {
    key: 'region', title: phrase('region.where'), hint: phrase('region.where_hint'),
    begin: async text => {
      const wide = number('stack-width_px', 512), high = number('stack-height_px', 512);
      const share = within(Math.max(wide, high), 512, 1024) / Math.max(wide, high);
      const width = Math.max(16, Math.round(wide * share)), height = Math.max(16, Math.round(high * share));
      paint.begin(width, height);
      paint.over('');
      // The picture itself: on the page it may be beside a pinned one, or below a grid.
      const shown = document.querySelector('#shown-picture [data-address]'), image = new Image();
      image.addEventListener('load', () => {
        const ratio = image.naturalWidth / image.naturalHeight;
        if (Math.abs(ratio * height / width - 1) < .03) paint.over(image.src);
      });
      if (shown) image.src = shown.dataset.address;
      const mask = text.match(/^mask (data:)?(.+)$/s), edges = text.match(/^box\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)$/);
      if (edges) {
        const [left, top, right, bottom] = edges.slice(1).map(Number);
        paint.hold({box: [left * width, top * height, (right - left) * width, (bottom - top) * height]});
      } else if (mask) {
        const answer = mask[1] ? {url: `data:image/png;base64,${mask[2]}`} : await server.mask(mask[2].trim());
        if (answer.problem) throw new Error(answer.problem);
        await paint.holdMask(answer.url);
      }
      return !text || Boolean(mask || edges);
    },
    body: () => [paint.stage, paint.tools],
    text: async () => {
      const {least, most, url} = paint.mask();
      if (!most) throw new Error(phrase('region.nothing_painted'));
      if (least === 255) return '';
      const answer = await server.keep_mask(url());
      if (answer.problem) throw new Error(answer.problem);
      return `mask ${answer.name}`;
    },
    press: paint.press,
    first: () => paint.canvas,
  };
};
