  // A wide table fades at the edge behind which there is more of it: phones show no scroll bar.
  document.querySelectorAll(".wide").forEach(box => {
    const mark = () => {
      box.classList.toggle("before", box.scrollLeft > 1);
      box.classList.toggle("beyond", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    };
    box.addEventListener("scroll", mark, {passive: true});
    new ResizeObserver(mark).observe(box);
    mark();
  });
