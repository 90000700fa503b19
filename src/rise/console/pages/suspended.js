// Choosing on the page: all at once, and how many.

const form = document.querySelector(".choose");
const all = document.getElementById("all");
const boxes = [...form.querySelectorAll("input[name=task]")];

function count() {
  const chosen = boxes.filter((box) => box.checked).length;
  document.getElementById("chosen").textContent = chosen ? ` (${chosen})` : "";
  all.checked = chosen === boxes.length;
  all.indeterminate = chosen > 0 && chosen < boxes.length;
}

if (all) {
  all.parentElement.hidden = false;
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    count();
  });
  form.addEventListener("change", count);
  count();
}
