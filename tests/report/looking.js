// What is wrong with the page as it is shown now: one line for each thing.
() => {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) found.push(`the page is ${root.scrollWidth} px wide`);
  if (document.scripts.length) found.push("there is a script");

  const colour = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const paper = colour(getComputedStyle(at).backgroundColor);
      if (paper.length === 3 || paper[3] > 0) return paper;
    }
    return [255, 255, 255];
  };

  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const holder = node.parentElement;
    if (!node.data.trim() || !holder.checkVisibility() || ["title", "desc"].includes(holder.tagName)) continue;
    const style = getComputedStyle(holder), drawn = holder instanceof SVGElement;
    const size = parseFloat(style.fontSize) * (drawn ? holder.getScreenCTM().a : 1);
    if (size < 12) found.push(`"${node.data.trim()}" is ${size.toFixed(1)} px high`);
    const ratio = contrast(colour(drawn ? style.fill : style.color), background(holder));
    if (ratio < 4.5) found.push(`"${node.data.trim()}" has a contrast of ${ratio.toFixed(2)}`);
    if (!drawn && !holder.closest(".scroll, pre, caption")) {
      const range = document.createRange();
      range.selectNodeContents(node);
      const box = range.getBoundingClientRect();
      if (box.left < 0 || box.right > root.clientWidth + 0.5) found.push(`"${node.data.trim()}" leaves the page`);
    }
  }

  const charts = [...document.querySelectorAll("svg.chart")].filter((svg) => svg.checkVisibility());
  for (const svg of charts) {
    const name = svg.querySelector("title").textContent;
    const labels = [...svg.querySelectorAll("text.label")].filter((text) => text.textContent.trim());
    if (labels.length !== 2) found.push(`${name}: ${labels.length} axis labels`);
    if (!svg.querySelector("desc").textContent.trim()) found.push(`${name}: no description`);
    if (svg.querySelectorAll("text.tick").length < 4) found.push(`${name}: few ticks`);
    const view = svg.viewBox.baseVal, boxes = [...svg.querySelectorAll("text")].map((text) => [text, text.getBBox()]);
    for (const [text, box] of boxes) {
      const inside = box.x >= 0 && box.y >= 0 && box.x + box.width <= view.width && box.y + box.height <= view.height;
      if (!inside) found.push(`${name}: "${text.textContent}" is outside`);
    }
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      const apart = a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
      if (!apart) found.push(`${name}: "${one.textContent}" and "${other.textContent}" overlap`);
    }));
    for (const mark of svg.querySelectorAll(".mark, .stroke, .is, .outline")) {
      const paint = getComputedStyle(mark), shown = paint.fill !== "none" ? paint.fill : paint.stroke;
      const ratio = contrast(colour(shown), background(svg));
      if (ratio < 3) found.push(`${name}: a mark has a contrast of ${ratio.toFixed(2)}`);
    }
  }
  return { found, charts: charts.length };
}
