// What a page does beyond standing there: sort and filter tables, copy citations.  Without scripts all of it is text.
"use strict";
(() => {
  const live = document.getElementById("live");
  const say = (text) => { if (live) { live.textContent = text; } };
  const key = (cell) => {
    const number = cell && cell.querySelector("data");
    return number ? Number(number.value) : (cell ? cell.textContent.trim().toLowerCase() : "");
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b);

  for (const table of document.querySelectorAll("table[data-sort]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        say(`Sorted by ${head.textContent.trim()}, ${up ? "ascending" : "descending"}`);
        for (const body of table.tBodies) {
          const group = [...body.rows].filter((row) => row.cells.length < heads.length);
          const rows = [...body.rows].filter((row) => row.cells.length === heads.length);
          rows.sort((a, b) => (up ? 1 : -1) * compare(key(a.cells[column]), key(b.cells[column])));
          body.append(...group, ...rows);
        }
      });
    });
  }

  // What is chosen stands in the address behind #?, so that a link leads to the same view.
  const asked = () => new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : "");
  document.querySelectorAll("table[data-filter]").forEach((table, index) => {
    const names = table.dataset.filter.split(" ");
    const rows = [...table.querySelectorAll("tbody tr")].filter((row) => row.dataset[names[0]] !== undefined);
    const form = document.createElement("div");
    form.className = "filters";
    form.setAttribute("role", "search");
    form.setAttribute("aria-label", "Filter the table");
    const chosen = new Map();
    const count = document.createElement("output");
    const apply = () => {
      let shown = 0;
      for (const row of rows) {
        const fits = [...chosen].every(([name, value]) => !value ||
          (name === "text" ? row.textContent.toLowerCase().includes(value) : row.dataset[name].split(" ").includes(value)));
        row.hidden = !fits;
        shown += fits;
      }
      for (const body of table.tBodies) {
        const group = [...body.rows].filter((row) => row.dataset[names[0]] === undefined);
        const empty = ![...body.rows].some((row) => !row.hidden && !group.includes(row));
        group.forEach((row) => { row.hidden = empty; });
      }
      count.textContent = `${shown} of ${rows.length}`;
    };
    const choose = (name, value) => {
      chosen.set(name, value);
      apply();
      say(`${count.textContent} lines shown`);
      const kept = asked();
      if (value) { kept.set(`${index}.${name}`, value); } else { kept.delete(`${index}.${name}`); }
      history.replaceState(null, "", kept.size ? `#?${kept}` : "#");
    };
    const field = (name, control) => {
      const label = document.createElement("label");
      label.append(`${name} `, control);
      form.append(label);
    };
    for (const name of names) {
      const select = document.createElement("select");
      select.append(new Option("all", ""));
      for (const value of [...new Set(rows.flatMap((row) => row.dataset[name].split(" ")))].sort()) {
        select.append(new Option(value.replaceAll("_", " "), value));
      }
      select.addEventListener("change", () => choose(name, select.value));
      const first = asked().get(`${index}.${name}`);
      if (first && [...select.options].some((option) => option.value === first)) {
        select.value = first;
        chosen.set(name, first);
      }
      field(name, select);
    }
    const search = document.createElement("input");
    search.type = "search";
    search.addEventListener("input", () => choose("text", search.value.trim().toLowerCase()));
    search.value = asked().get(`${index}.text`) || "";
    chosen.set("text", search.value.toLowerCase());
    field("text", search);
    form.append(count);
    const place = table.closest(".scroll") || table;
    place.before(form);
    apply();
    const details = table.closest("details");
    if (details && [...chosen.values()].some(Boolean)) { details.open = true; }
  });

  for (const pre of document.querySelectorAll("pre.cite")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(pre.textContent);
      } catch {  // a page opened from a file may be refused: select it instead
        const range = document.createRange();
        range.selectNodeContents(pre);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        if (!document.execCommand("copy")) { button.textContent = "Selected"; return; }
      }
      say("Copied");
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    pre.before(button);
  }
})();
