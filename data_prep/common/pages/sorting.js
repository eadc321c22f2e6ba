  // A heading with data-kind "number" sorts by its cells' data-v, another by their text, or that of
  // a .name in them. What is not known comes last either way.
  const sortable = table => {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    const order = new Intl.Collator("en", {numeric: true}).compare;
    const sort = (head, column) => {
      const number = head.dataset.kind === "number", now = head.getAttribute("aria-sort");
      const down = now ? now === "ascending" : number;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => number ? parseFloat(row.cells[column].dataset.v) : (row.cells[column].querySelector(".name") || row.cells[column]).textContent;
      const sign = down ? -1 : 1;
      body.append(...rows.map((row, i) => [key(row), i, row]).sort(([a, i], [b, j]) =>
        (number ? (isNaN(a) - isNaN(b)) || sign * (a - b) : sign * order(a, b)) || i - j).map(item => item[2]));
    };
    heads.forEach((head, i) => head.querySelector("button")?.addEventListener("click", () => sort(head, i)));
  };
