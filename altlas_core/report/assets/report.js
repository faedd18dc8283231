/* Draws every figure of the page on load: all of them, at once, from the JSON beside each. No request is made. */
"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const NARROW_PX = 560;
  const figures = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function template(given) {
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"),
      tickcolor: colour("--line"), automargin: true, title: { standoff: 10, font: { size: 13 } },
    };
    const ours = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colour("--sans"), size: 13, color: colour("--ink-soft") },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      legend: { bgcolor: "rgba(0,0,0,0)" }, colorway: palette, xaxis: axis, yaxis: axis,
      annotationdefaults: { font: { color: colour("--ink-soft") } },
    };
    const layout = (given && given.layout) || {};
    return { data: (given && given.data) || {}, layout: { ...layout, ...ours, colorway: layout.colorway || palette } };
  }

  // Okabe and Ito's colours, told apart by people with any kind of colour vision, in tones that hold on light and dark.
  const palette = ["#3b82c4", "#e08a1e", "#1a9e77", "#cc6ba0", "#8a6fd1", "#c9a227", "#d1553b", "#6b8794"];

  function dressed(figure, width) {
    const layout = { ...figure.layout, autosize: true };
    delete layout.paper_bgcolor;
    delete layout.plot_bgcolor;
    if (layout.font) layout.font = { ...layout.font, color: undefined, family: undefined };
    layout.template = template(layout.template);
    layout.margin = { l: 56, r: 20, t: 20, b: 48, ...layout.margin };
    // The title has become the caption. What room it had goes, unless titles of subplots stand there.
    const above = (layout.annotations || []).some((note) => note.yref === "paper" && note.y >= 0.99);
    layout.margin.t = Math.min(layout.margin.t, above ? 44 : 28);
    if (width < NARROW_PX) {
      layout.margin.l = Math.min(layout.margin.l, 44);
      layout.margin.r = 8;
      layout.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: -0.25, yanchor: "top" };
    }
    return layout;
  }

  function draw(place, figure) {
    const layout = dressed(structuredClone(figure), place.clientWidth);
    const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    return Plotly.react(place, structuredClone(figure.data), layout, options);
  }

  function failed(place, error) {
    place.classList.add("undrawn");
    place.style.height = "auto";
    place.textContent = "This figure could not be drawn: " + error.message;
    console.error(error);
  }

  async function drawAll() {
    for (const place of document.querySelectorAll(".figure")) {
      try {
        const figure = JSON.parse(place.parentElement.querySelector('script[type="application/json"]').textContent);
        place.replaceChildren();
        figures.push([place, figure]);
        await draw(place, figure);
      } catch (error) {
        failed(place, error);
      }
    }
    document.documentElement.dataset.figures = "drawn";
  }

  const again = () => figures.forEach(([place, figure]) => draw(place, figure));
  dark.addEventListener("change", again);
  window.addEventListener("beforeprint", again);
  drawAll();
})();
