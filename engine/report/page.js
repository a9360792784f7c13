"use strict";
// Draws the charts, links map, histogram and table, and shows rows. Text of rows only ever becomes a text node.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const grey = "rgba(128, 128, 128, 0.25)";
  const theme = {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: {
      labelColor: "currentColor", titleColor: "currentColor", gridColor: grey, domainColor: grey, tickColor: grey,
      titleFontWeight: 500, labelFontSize: 11, titleFontSize: 12,
    },
    axisY: { labelLimit: window.innerWidth < 500 ? 110 : 190 },
    legend: { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 12, titleFontSize: 12 },
    text: { color: "currentColor", fontSize: 11 },
    rule: { color: "currentColor" },
  };
  const byId = new Map(data.points.map((point) => [point.id, point]));
  const chosen = { box: null, range: null }; // rectangle on the map, range of the score
  const views = {};
  let table = null;

  function embed(place, name) {
    const options = { renderer: "svg", actions: false, config: theme, ast: false };
    const spec = structuredClone(data.charts[name]);
    if (spec.data && spec.data.name === "points") spec.data = { name: "points", values: shownPoints(place.id) };
    return vegaEmbed(place, spec, options).then((result) => result.view);
  }

  function inBox(point) {
    const box = chosen.box;
    return !box || (point.x >= box.x[0] && point.x <= box.x[1] && point.y >= box.y[0] && point.y <= box.y[1]);
  }

  function inRange(score) {
    return !chosen.range || (score != null && score >= chosen.range[0] && score <= chosen.range[1]);
  }

  // The map keeps what the range leaves, the histogram what the rectangle leaves: neither filters itself.
  function shownPoints(place) {
    return data.points.filter((point) => (place === "linked" ? inBox(point) : inRange(point.score)));
  }

  function later(work) {
    let waiting = null;
    return () => {
      clearTimeout(waiting);
      waiting = setTimeout(work, 60);
    };
  }

  const refresh = later(() => {
    const clear = document.getElementById("clear");
    if (clear) clear.hidden = !chosen.box && !chosen.range;
    if (views.linked) views.linked.data("points", shownPoints("linked")).runAsync();
    filterTable();
  });
  const refreshMap = later(() => views.map && views.map.data("points", shownPoints("map")).runAsync());

  function ordered(pair) {
    return pair[0] <= pair[1] ? pair : [pair[1], pair[0]];
  }

  async function drawMap() {
    const place = document.getElementById("map");
    if (!place) return;
    if (views.map) views.map.finalize();
    views.map = await embed(place, document.getElementById("colour").value);
    views.map.addSignalListener("brush", (_, area) => {
      chosen.box = area.x && area.y ? { x: ordered(area.x), y: ordered(area.y) } : null;
      refresh();
    });
  }

  async function drawLinked() {
    const place = document.getElementById("linked");
    if (!place) return;
    if (views.linked) views.linked.finalize();
    views.linked = await embed(place, "linked");
    views.linked.addSignalListener("range", (_, area) => {
      const span = area.score || Object.values(area)[0];
      chosen.range = span ? ordered(span) : null;
      refresh();
      refreshMap();
    });
  }

  async function clearLinks() {
    chosen.box = chosen.range = null;
    await drawMap();
    await drawLinked();
    refresh();
  }

  // ---- rows

  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text != null) made.textContent = text;
    return made;
  }

  function textCell(cell) {
    const value = cell.getValue();
    const span = element("span", value == null ? "" : String(value).slice(0, 160));
    span.dir = "auto";
    return span;
  }

  function number(value) {
    if (typeof value !== "number") return String(value);
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  }

  function textBlock(title, text) {
    const block = element("div");
    block.append(element("h4", title));
    const body = element("p", text, "text");
    body.dir = "auto";
    block.append(body);
    return block;
  }

  function detail(row) {
    const made = element("div", null, "detail");
    const facts = element("div", null, "facts small");
    const add = (name, value) => {
      const entry = element("span");
      entry.append(element("b", name + " "), document.createTextNode(value));
      facts.append(entry);
    };
    add(row.selected ? "why in" : "why out", row.reason);
    for (const [name, value] of Object.entries({ rank: row.rank, score: row.score, cluster: row.cluster, source: row.source, turns: row.turns }))
      if (value != null) add(name, number(value));
    for (const [name, value] of Object.entries(row.scores)) add(name, number(value));
    if (row.judge)
      for (const [name, value] of Object.entries(row.judge)) if (name !== "answer") add("judge: " + name, number(value));
    add("where", row.where);
    add("id", row.id);
    made.append(facts);
    made.append(textBlock(`prompt, ${row.chars[0].toLocaleString("en")} characters`, row.prompt));
    made.append(textBlock(`response (the reference), ${row.chars[1].toLocaleString("en")} characters`, row.response));
    if (row.judge && row.judge.answer != null) made.append(textBlock("the model's answer", row.judge.answer));
    made.addEventListener("click", (event) => event.stopPropagation());
    return made;
  }

  function openerCell(cell) {
    const row = cell.getRow();
    const made = element("button", opened.has(row.getData().id) ? "▾" : "▸", "opener");
    made.setAttribute("aria-label", "show the whole row");
    made.setAttribute("aria-expanded", String(opened.has(row.getData().id)));
    return made;
  }

  const opened = new Set();

  function toggle(row) {
    const id = row.getData().id;
    if (!opened.delete(id)) opened.add(id);
    row.reformat();
  }

  function verdictOf(row) {
    if (!row.judge) return "";
    if (row.judge.hard === true) return "hard";
    return row.judge.hard === false ? "easy" : row.judge.verdict || "failed";
  }

  function drawTable() {
    const place = document.getElementById("examples-table");
    if (!place) return;
    for (const row of data.examples) {
      row.verdict = verdictOf(row);
      row.found = [row.id, row.source, row.where, row.reason, row.prompt, row.response, (row.judge || {}).answer || ""]
        .join("\n").toLowerCase();
    }
    const scored = data.examples.some((row) => row.score != null);
    const judged = data.examples.some((row) => row.judge);
    const columns = [
      { formatter: openerCell, width: 34, minWidth: 34, cssClass: "open-cell", headerSort: false, responsive: 0, hozAlign: "center" },
      {
        title: "in?", field: "selected", width: 66, responsive: 1,
        formatter: (cell) => element("span", cell.getValue() ? "in" : "out", "badge " + (cell.getValue() ? "in" : "out")),
      },
      { title: "prompt", field: "prompt", formatter: textCell, minWidth: 130, widthGrow: 3, responsive: 0 },
      { title: "response", field: "response", formatter: textCell, minWidth: 160, widthGrow: 3, responsive: 4 },
      { title: "source", field: "source", formatter: textCell, width: 110, responsive: 6 },
      { title: "rank", field: "rank", width: 80, hozAlign: "right", responsive: 3, sorterParams: { alignEmptyValues: "bottom" } },
    ];
    const numeric = (cell) => element("span", cell.getValue() == null ? "" : number(cell.getValue()));
    if (scored) columns.push({ title: "score", field: "score", width: 84, hozAlign: "right", responsive: 2, formatter: numeric });
    if (judged) columns.push({ title: "judge", field: "verdict", width: 80, responsive: 3, formatter: textCell });
    columns.push({ title: "why", field: "reason", formatter: textCell, minWidth: 120, widthGrow: 1, responsive: 5 });
    table = new Tabulator(place, {
      data: data.examples, index: "id", layout: "fitColumns", responsiveLayout: "hide", columns,
      pagination: true, paginationSize: 15, paginationButtonCount: 3, renderVertical: "basic",
      placeholder: "no row fits; clear the search, the filters or the selection on the map",
      rowFormatter: (row) => {
        const old = row.getElement().querySelector(":scope > .detail");
        if (old) old.remove();
        if (opened.has(row.getData().id)) row.getElement().append(detail(row.getData()));
      },
    });
    table.on("rowClick", (_, row) => toggle(row));
    table.on("tableBuilt", filterTable);
    table.on("dataFiltered", (_, rows) => {
      const many = rows.length.toLocaleString("en");
      document.getElementById("count").textContent = `${many} of ${data.examples.length.toLocaleString("en")} rows`;
    });
    for (const id of ["search", "kind", "in-out", "source", "judge"]) {
      const control = document.getElementById(id);
      if (control) control.addEventListener(id === "search" ? "input" : "change", refresh);
    }
    fill("kind", data.examples.map((row) => row.kind));
    fill("source", data.examples.map((row) => row.source));
    fill("judge", data.examples.map((row) => row.verdict).filter(Boolean));
  }

  function fill(id, values) {
    const control = document.getElementById(id);
    const names = [...new Set(values)].sort();
    if (!names.length) control.remove();
    for (const name of names.slice(0, 200)) {
      const option = element("option", name.slice(0, 60));
      option.value = name;
      control.append(option);
    }
  }

  function filterTable() {
    if (!table || !table.initialized) return;
    const value = (id) => (document.getElementById(id) || { value: "" }).value;
    const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
    const [kind, inOut, source, judge] = ["kind", "in-out", "source", "judge"].map(value);
    table.setFilter((row) => {
      if (kind && row.kind !== kind) return false;
      if (inOut && row.selected !== (inOut === "in")) return false;
      if (source && row.source !== source) return false;
      if (judge && row.verdict !== judge) return false;
      if (chosen.box && !(byId.has(row.id) && inBox(byId.get(row.id)))) return false;
      if (!inRange(row.score)) return false;
      return words.every((word) => row.found.includes(word));
    });
  }

  async function start() {
    drawTable();
    for (const place of document.querySelectorAll("[data-chart]")) await embed(place, place.dataset.chart);
    await drawMap();
    await drawLinked();
    const colour = document.getElementById("colour");
    if (colour) colour.addEventListener("change", () => { chosen.box = null; drawMap().then(refresh); });
    const clear = document.getElementById("clear");
    if (clear) clear.addEventListener("click", clearLinks);
    document.body.dataset.ready = "yes";
  }

  start();
})();
