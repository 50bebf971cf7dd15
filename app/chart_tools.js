// The buttons above a chart: what they do is done by the chart's own script (chart_zoom.js).
element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (!button) return;
  const chart = document.getElementById(button.closest('[data-chart]').dataset.chart);
  chart?.querySelector('[role=group]')?.dispatchEvent(new CustomEvent('velatura-zoom', {detail: button.dataset.act}));
});
