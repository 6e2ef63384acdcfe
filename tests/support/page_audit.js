// What a reader would stumble over on this page, as JSON in a message to the window around it.
(() => {
  const found = [];
  const say = (what, node, more = "") => found.push(`${what}: ${(node.textContent || node.className.baseVal || "").trim().slice(0, 40)} ${more}`);
  const clipped = (node) => node.closest("thead") && getComputedStyle(node.closest("thead")).clipPath !== "none";
  const seen = (node) => !clipped(node) && node.checkVisibility({ contentVisibilityAuto: true }) && node.getClientRects().length > 0;
  const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = (c) => (c <= 10.31 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const bright = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const contrast = (a, b) => (Math.max(bright(a), bright(b)) + 0.05) / (Math.min(bright(a), bright(b)) + 0.05);
  function ground(node) {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  }
  const all = [...document.body.querySelectorAll("*")].filter(seen);
  const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  for (const node of all.filter((one) => own(one) && !one.closest("title, script"))) {
    const style = getComputedStyle(node);
    const drawn = node instanceof SVGElement;
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = contrast(rgb(drawn ? style.fill : style.color), ground(node));
    if (ratio < (large ? 3 : 4.5)) say("contrast", node, ratio.toFixed(2));
    const box = node.getBoundingClientRect();
    if (box.right > innerWidth + 1 && !node.closest("pre, .scroll, .flush")) say("beyond the page", node);
    if (drawn) {
      const shown = box.height / 1.3; // a line box is a third higher than its letters
      if (shown < 8) say("too small to read", node, shown.toFixed(1));
    }
  }
  for (const shape of all.filter((one) => one.matches("svg g > path, svg .whisker"))) {
    const style = getComputedStyle(shape);
    if (contrast(rgb(style.stroke), ground(shape)) < 3) say("faint", shape, style.stroke);
  }
  for (const drawing of all.filter((one) => one.matches("svg"))) {
    const frame = drawing.getBoundingClientRect();
    const boxes = [...drawing.querySelectorAll("text")].map((node) => [node, node.getBoundingClientRect()]);
    boxes.forEach(([node, a], n) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1) say("cut off", node);
      for (const [other, b] of boxes.slice(n + 1)) {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 3) say("overlap", node, `with ${other.textContent}`);
      }
    });
  }
  for (const node of all.filter((one) => one.matches("td > span, th, .value, .tile p, h1, summary"))) {
    if (node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).display !== "inline") say("overflow", node);
  }
  parent.postMessage({ width: document.documentElement.scrollWidth, height: Math.ceil(document.body.getBoundingClientRect().height), drawings: all.filter((one) => one.matches("svg[role=img]")).length, text: document.body.innerText, found }, "*");
})();
