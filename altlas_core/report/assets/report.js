/* Draws every figure of the page on load, in order of appearance, from the JSON beside each. No request is made. */
"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");
  const NARROW_PX = 560;
  const PRINT_PX = 680; // what A4 and Letter have room for, within the margins of report.css
  const UNUSED = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
  // Okabe and Ito's colours, told apart by people with any kind of colour vision, in tones that hold on light and dark.
  const palette = ["#3b82c4", "#e08a1e", "#1a9e77", "#cc6ba0", "#8a6fd1", "#c9a227", "#d1553b", "#6b8794"];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function template(given) {
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"),
      tickcolor: colour("--line"), automargin: true, title: { standoff: 10, font: { size: 13 } },
    };
    const ours = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colour("--sans"), size: 13, color: colour("--ink-soft") },
      hoverlabel: {
        bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") },
        align: "left", namelength: -1,
      },
      legend: { bgcolor: "rgba(0,0,0,0)" }, xaxis: axis, yaxis: axis,
      annotationdefaults: { font: { color: colour("--ink-soft") } },
    };
    const layout = (given && given.layout) || {};
    return { data: (given && given.data) || {}, layout: { ...layout, ...ours, colorway: layout.colorway || palette } };
  }

  function dressed(given, width) {
    const layout = { ...given, autosize: true, uirevision: "the reader's", template: template(given.template) };
    delete layout.paper_bgcolor;
    delete layout.plot_bgcolor;
    if (layout.font) layout.font = { size: layout.font.size };
    layout.margin = { l: 56, r: 20, t: 20, b: 48, ...layout.margin };
    // The title has become the caption. What room it had goes, unless titles of subplots stand there.
    const above = (layout.annotations || []).some((note) => note.yref === "paper" && note.y >= 0.99);
    layout.margin.t = Math.min(layout.margin.t, above ? 44 : 28);
    if (touch.matches) layout.dragmode = false; // a finger on a figure scrolls the page
    if (width < NARROW_PX) {
      layout.margin.l = Math.min(layout.margin.l, 44);
      layout.margin.r = 8;
      layout.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: -0.25, yanchor: "top" };
    }
    return layout;
  }

  function draw(place, width) {
    const figure = JSON.parse(place.parentElement.querySelector('script[type="application/json"]').textContent);
    const layout = dressed(figure.layout, width || place.clientWidth);
    if (width) layout.width = width;
    const options = {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: UNUSED,
      showSendToCloud: false, plotlyServerURL: "", // a figure stays where it is
    };
    return Plotly.react(place, figure.data, layout, options);
  }

  function failed(place, error) {
    place.classList.add("undrawn");
    place.style.height = "auto";
    place.textContent = "This figure could not be drawn: " + error.message;
    console.error(error);
  }

  const pause = () => new Promise((resume) => setTimeout(resume)); // the browser shows what is there, and answers

  async function drawAll() {
    for (const place of document.querySelectorAll(".figure")) {
      try {
        place.replaceChildren();
        await draw(place);
        place.dataset.drawn = "";
      } catch (error) {
        failed(place, error);
      }
      await pause();
    }
    document.dispatchEvent(new Event("figures-drawn"));
    document.documentElement.dataset.figures = "drawn";
  }

  const again = (width) => document.querySelectorAll(".figure[data-drawn]").forEach((place) => draw(place, width));
  dark.addEventListener("change", () => again());
  window.addEventListener("beforeprint", () => {
    document.documentElement.dataset.printing = ""; // paper is light, whatever the screen is
    again(PRINT_PX);
  });
  window.addEventListener("afterprint", () => {
    delete document.documentElement.dataset.printing;
    again();
  });
  drawAll();
})();
