"use strict";
(async () => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const images = read("map-images");
  const panel = document.getElementById("selected");
  const box = document.getElementById("map");
  const views = await Bokeh.embed.embed_item(read("map-item"), "map");
  const plot = (views.roots ?? [...views])[0].model;
  const groups = plot.renderers.filter((r) => (r.name ?? "").startsWith("group-"));
  const ring = plot.renderers.find((r) => r.data_source.name === "selected").data_source;

  // The places of all images that are shown.
  const points = () => groups.filter((r) => r.visible).flatMap((r) => {
    const data = r.data_source.data;
    return Array.from(data.row, (row, i) => ({row, x: data.x[i], y: data.y[i]}));
  });

  let current = null;
  const select = (point) => {
    current = point;
    ring.data = {x: [point.x], y: [point.y]};
    const image = images[point.row];
    const picture = document.createElement("span");
    picture.className = "t large";
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", image.text);
    picture.style.setProperty("--x", image.x);
    picture.style.setProperty("--y", image.y);
    const text = document.createElement("span");
    text.textContent = image.text;
    panel.replaceChildren(picture, text);
  };

  for (const renderer of groups) {
    const selected = renderer.data_source.selected;
    selected.change.connect(() => {
      const index = selected.indices[0];
      if (index === undefined) return;
      const data = renderer.data_source.data;
      select({row: data.row[index], x: data.x[index], y: data.y[index]});
    });
  }

  const directions = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
  };
  box.addEventListener("keydown", (event) => {
    const direction = directions[event.key];
    if (!direction || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const all = points();
    if (!all.length) return;
    if (!current) {
      // The image nearest to the middle.
      const mean = (name) => all.reduce((sum, p) => sum + p[name], 0) / all.length;
      const middle = {x: mean("x"), y: mean("y")};
      const far = (p) => Math.hypot(p.x - middle.x, p.y - middle.y);
      select(all.reduce((best, p) => (far(p) < far(best) ? p : best)));
      return;
    }
    const [u, v] = direction;
    let best = null, least = Infinity;
    for (const p of all) {
      const dx = p.x - current.x, dy = p.y - current.y;
      const along = dx * u + dy * v, aside = Math.abs(dx * v) + Math.abs(dy * u);
      if (along <= 0 || p.row === current.row) continue;
      const cost = along + 2 * aside;
      if (cost < least) { least = cost; best = p; }
    }
    if (best) select(best);
  });

  for (const input of document.querySelectorAll("[data-group]")) {
    const show = () => {
      groups[Number(input.dataset.group)].visible = input.checked;
    };
    input.addEventListener("change", show);
    show();  // a browser may restore an unchecked box
  }
})();
