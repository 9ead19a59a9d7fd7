// What is wrong with a page as it is laid out: an object of lists, all empty for a sound page.
(() => {
  const visible = (node) => {
    const box = node.getBoundingClientRect();
    const style = getComputedStyle(node);
    return box.width > 0 && box.height > 0 && style.visibility !== "hidden" && style.opacity !== "0";
  };

  const inside = (node, selector) => node.closest(selector) !== null;

  // Colours. https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const background = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (front, back) => {
    const [high, low] = [luminance(front), luminance(back)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };

  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const judge = (colour, node, words) => {
    const back = background(node);
    const found = ratio(over(colour, back), back);
    if (found < 4.5) faint.push(`${found.toFixed(2)}: ${words.slice(0, 60)}`);
  };
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !visible(node) || inside(node, "title, desc")) continue;
    const style = getComputedStyle(node);
    judge(parse(node instanceof SVGElement ? style.fill : style.color), node, texts.currentNode.data);
  }
  for (const node of document.querySelectorAll("*")) {
    const before = getComputedStyle(node, "::before");
    if (!["none", "normal", ""].includes(before.content) && before.display !== "none" && visible(node)) {
      judge(parse(before.color), node, before.content);
    }
  }
  for (const mark of document.querySelectorAll(".mark, .limit, .ring, .base")) {
    // Graphics need 3:1: https://www.w3.org/TR/WCAG22/#non-text-contrast
    if (!visible(mark)) continue;
    const back = background(mark);
    const found = ratio(parse(getComputedStyle(mark).stroke), back);
    if (found < 3) faint.push(`${found.toFixed(2)}: ${mark.getAttribute("class")}`);
  }

  // Widths: nothing sticks out, unless it lies in a box that scrolls by itself.
  const width = document.documentElement.clientWidth;
  const wide = [...document.body.querySelectorAll("*")]
    .filter((node) => visible(node) && !inside(node, ".scroll, .fit > .cards, .cards thead"))
    .filter((node) => node.getBoundingClientRect().right > width + 0.5)
    .map((node) => `${node.tagName}.${node.getAttribute("class")}`);
  if (document.documentElement.scrollWidth > width) {
    wide.push(`page: ${document.documentElement.scrollWidth} of ${width}`);
  }

  // The chart.
  const charts = [...document.querySelectorAll("svg.chart")].filter(visible);
  const outside = [];
  const covered = [];
  const small = [];
  for (const chart of charts) {
    const frame = chart.getBoundingClientRect();
    const boxes = [...chart.querySelectorAll("text")].map((node) => [node.textContent, node.getBoundingClientRect()]);
    const marks = [...chart.querySelectorAll(".mark, .base")].map((node) => ["a marker", node.getBoundingClientRect()]);
    boxes.forEach(([words, box], index) => {
      if (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom) {
        outside.push(words);
      }
      if (box.height < 10) small.push(`${words}: ${box.height.toFixed(1)} px`);
      for (const [other, at] of boxes.slice(index + 1).concat(marks)) {
        const across = Math.min(box.right, at.right) - Math.max(box.left, at.left);
        // The boxes of text hold the room above capitals and below the line: two pixels of it may be shared.
        const down = Math.min(box.bottom, at.bottom) - Math.max(box.top, at.top);
        if (across > 0.5 && down > 2.5) covered.push(`${words} and ${other}`);
      }
    });
  }
  return {
    charts: charts.map((chart) => {
      const box = chart.getBoundingClientRect();
      return [Math.round(box.width), Math.round(box.height)];
    }),
    luminance: luminance(background(document.body)),
    faint,
    wide,
    outside,
    covered,
    small,
  };
})();
