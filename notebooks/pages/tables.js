// Wide tables become cards on a phone (style.css): each cell then shows its column's head.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
    if (heads.length < 4) continue;
    table.classList.add("wide");
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, i) => (cell.dataset.label = heads[i]));
  }
});
