const section = document.getElementById("draw");
if (section) setTimeout(async () => {
  const program = JSON.parse(document.getElementById("generator").textContent), { draw, worst, numbers } = generator(program);
  const form = section.querySelector("form"), shown = section.querySelector(".drawn"), said = section.querySelector("[role=status]");
  const captions = program.captions, each = 10;
  section.hidden = false;
  section.dataset.worst = worst();
  section.querySelector(".checked").textContent = `Of shipped noise it drew, in this browser just now, what PyTorch drew, to ${section.dataset.worst} of 255 grey levels.`;
  let turn = 0;
  async function redraw() {
    const mine = ++turn, wanted = Number(form.choice?.value ?? 0), seed = Number(form.seed.value) || 0, began = performance.now();
    const choices = Array.from({ length: each }, (_, i) => wanted >= 0 ? wanted
      : captions.length <= each ? i % captions.length : Math.round(i * (captions.length - 1) / (each - 1)));
    const cells = [];
    for (const [i, choice] of choices.entries()) {
      const cell = document.createElement("div"), canvas = cell.appendChild(document.createElement("canvas"));
      paint(canvas, draw(choice, normal(numbers, seed, i)));
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `generated ${captions[choice]}`);
      if (wanted < 0) cell.appendChild(document.createElement("small")).textContent = captions[choice];
      cells.push(cell);
      await new Promise((done) => setTimeout(done));
      if (mine !== turn) return; // something else was asked for meanwhile
    }
    shown.replaceChildren(...cells);
    said.textContent = `${each} pictures in ${Math.round(performance.now() - began)} ms, seed ${seed}.`;
    section.dataset.drawn = cells.length;
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); redraw(); });
  form.addEventListener("change", redraw);
  form.next.addEventListener("click", () => { form.seed.value = (Number(form.seed.value) || 0) + 1; redraw(); });
  redraw();
});
