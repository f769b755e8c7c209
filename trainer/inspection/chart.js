// Makes the charts of a page readable point by point: a line under the pointer or moved by the arrow keys, and a legend that hides lines.
// The values come back out of the pictures' own points, so a page holds them once.
"use strict";
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), readout = figure.querySelector("output");
  const { right, top, left, end, high, low } = Object.fromEntries(Object.entries(svg.dataset).map(([name, value]) => [name, Number(value)]));
  const lines = [...svg.querySelectorAll("g[data-name]")].map((group) => ({
    group,
    name: group.dataset.name,
    points: group.querySelector("polyline").getAttribute("points").split(" ").map((point) => point.split(",").map(Number)),
  }));
  const marks = [...svg.querySelectorAll("g.mark")].map((mark) => ({ x: Number(mark.dataset.x), text: mark.querySelector("title").textContent }));
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ y1: high, y2: low, stroke: "currentColor", "stroke-width": 1, visibility: "hidden" })) cursor.setAttribute(name, value);
  svg.append(cursor);
  let place = 0;

  const visible = () => lines.filter((line) => !line.group.hidden);
  const number = (value) => String(Number(value.toPrecision(4)));
  const value = (y) => ((low - y) / (low - high)) * top;
  const step = (x) => ((x - left) / (end - left)) * right;
  const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));

  function read(x) {
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const near = (right / (end - left)) * 6;
    const told = marks.filter((mark) => Math.abs(mark.x - step(x)) <= near).map((mark) => mark.text);
    readout.textContent = [`at ${Math.round(step(x))}`, ...visible().map((line) => `${line.name} ${number(value(nearest(line.points, x)[1]))}`), ...told].join(" · ");
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const points = visible()[0]?.points;
    if (!points) return;
    const point = nearest(points, at);
    place = points.indexOf(point);
    read(point[0]);
  });
  svg.addEventListener("pointerleave", () => cursor.setAttribute("visibility", "hidden"));
  svg.addEventListener("keydown", (event) => {
    const points = visible()[0]?.points;
    if (!points) return;
    const stride = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: place - stride, ArrowRight: place + stride, Home: 0, End: points.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    place = Math.max(0, Math.min(points.length - 1, moves[event.key]));
    read(points[place][0]);
  });
  figure.querySelectorAll(".legend button").forEach((button, index) =>
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      lines[index].group.hidden = !shown;
      lines[index].group.style.display = shown ? "" : "none";
    }),
  );
}
