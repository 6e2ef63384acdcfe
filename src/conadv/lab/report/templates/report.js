"use strict";
// Draws the figures, and keeps their colours, sizes and axes in step with the page.
(() => {
  const root = document.documentElement;
  const narrow = matchMedia("(max-width: 680px)");
  const charts = [...document.querySelectorAll(".chart")].map((node) => ({
    node,
    figure: JSON.parse(document.querySelector(`script[data-for="${node.id}"]`).textContent),
  }));
  const hidden = new Set([...document.querySelectorAll("[data-run][aria-pressed=false]")].map((button) => Number(button.dataset.run)));
  const hiddenMethods = new Set();
  const pressed = document.querySelector(".axes [aria-pressed=true]");
  let axis = pressed ? { slug: pressed.dataset.axis, title: pressed.dataset.title } : null;

  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function draw(width) {
    const ink = variable("--ink");
    const soft = variable("--soft");
    const grid = variable("--grid");
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: soft };
    for (const { node, figure } of charts) {
      const data = figure.data.map((trace) => {
        const colour = variable(`--m${trace.meta.method}`);
        return {
          ...trace,
          x: axis && trace.meta.x ? trace.meta.x[axis.slug] : trace.x,
          visible: trace.meta.x ? !hidden.has(trace.meta.run) : !hiddenMethods.has(trace.meta.method),
          line: { ...trace.line, color: colour },
          marker: { ...trace.marker, color: colour },
          ...(trace.error_y ? { error_y: { ...trace.error_y, color: colour } } : {}),
        };
      });
      const curves = figure.data.some((trace) => trace.meta.x);
      const xTitle = axis && curves ? axis.title : figure.layout.xaxis.title.text;
      const layout = {
        ...figure.layout,
        ...(width ? { width, height: 240 } : {}),
        autosize: !width,
        shapes: (figure.layout.shapes || []).map((shape) => ({ ...shape, line: { ...shape.line, color: soft } })),
        font,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        hoverlabel: { bgcolor: variable("--card"), bordercolor: variable("--line"), font: { ...font, color: ink } },
        xaxis: { ...figure.layout.xaxis, gridcolor: grid, linecolor: soft, title: { text: xTitle, font, standoff: 8 }, nticks: narrow.matches ? 5 : 7 },
        yaxis: { ...figure.layout.yaxis, gridcolor: grid, zerolinecolor: soft, title: { ...figure.layout.yaxis.title, font, standoff: 8 } },
      };
      Plotly.react(node, data, layout, { displayModeBar: false, responsive: true });
    }
  }

  document.querySelectorAll("[data-run]").forEach((button) => {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      if (!hidden.delete(run)) hidden.add(run);
      button.setAttribute("aria-pressed", String(!hidden.has(run)));
      draw();
    });
  });
  document.querySelectorAll("[data-method]").forEach((button) => {
    button.addEventListener("click", () => {
      const method = Number(button.dataset.method);
      if (!hiddenMethods.delete(method)) hiddenMethods.add(method);
      button.setAttribute("aria-pressed", String(!hiddenMethods.has(method)));
      draw();
    });
  });
  document.querySelectorAll("[data-axis]").forEach((button) => {
    button.addEventListener("click", () => {
      axis = { slug: button.dataset.axis, title: button.dataset.title };
      document.querySelectorAll("[data-axis]").forEach((other) => {
        other.setAttribute("aria-pressed", String(other === button));
      });
      draw();
    });
  });
  // What is folded has no size: its charts are drawn when it opens, by hand or by a link to it.
  document.querySelectorAll("details").forEach((part) => {
    part.addEventListener("toggle", () => part.open && draw());
  });
  function unfold() {
    const part = document.getElementById(location.hash.slice(1));
    if (part && part.matches("details")) part.open = true;
  }
  addEventListener("hashchange", unfold);
  unfold();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  narrow.addEventListener("change", () => draw());
  // A printed page is light and narrower than the window: 320 px fit twice into A4 and Letter.
  matchMedia("print").addEventListener("change", (event) => draw(event.matches ? 320 : undefined));
  draw();
})();
