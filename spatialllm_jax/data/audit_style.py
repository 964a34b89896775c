"""The audit page's style sheet and script."""

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 0; background: #f4f4f2; color: #222 }
header { position: sticky; top: 0; background: #fff; padding: 6px 16px; border-bottom: 1px solid #ccc; z-index: 2 }
h1 { font-size: 16px; margin: 0 }
header p { margin: 1px 0 4px; color: #555; font-size: 13px }
label { margin-right: 12px; font-size: 13px }
.bar { margin-top: 4px; font-size: 13px }
.keys { float: right; color: #555 }
kbd { border: 1px solid #aaa; border-radius: 3px; padding: 0 4px }
progress { width: 160px; vertical-align: middle }
details, .note { margin: 8px 16px }
.note { font-size: 12px; color: #777 }
pre { background: #fff; padding: 8px; overflow: auto; max-height: 420px }
.charts { display: flex; flex-wrap: wrap; gap: 8px }
figure { margin: 0; background: #fff; padding: 6px; width: 260px }
figcaption { font-size: 12px; color: #555 }
figure rect { fill: #4a7ab5 }
figure text { font-size: 7px; text-anchor: middle; fill: #444 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(640px, 1fr)); gap: 10px; padding: 10px 16px }
article { display: flex; gap: 10px; background: #fff; padding: 8px; border-radius: 4px; border-left: 6px solid #ddd }
.pic { position: relative; flex: 0 0 56%; align-self: flex-start; overflow: hidden }
.pic img { width: 100%; display: block; aspect-ratio: var(--ratio) }
.pic svg { position: absolute; inset: 0; width: 100%; height: 100% }
.txt { flex: 1; min-width: 0; overflow-wrap: anywhere }
.txt p { margin: 0 0 5px }
.meta, .num { font-size: 12px; color: #777 }
.a { font-weight: 600; color: #0a6b2d }
ul { margin: 2px 0 5px; padding-left: 18px; font-size: 13px; color: #555 }
.right { color: #0a6b2d; font-weight: 600 }
.bad { background: #c00; color: #fff; padding: 2px 6px }
[hidden] { display: none !important }
article[data-verdict=right] { border-left-color: #0a8b3d }
article[data-verdict=wrong] { border-left-color: #c00 }
article[data-verdict=unsure] { border-left-color: #e0a000 }
.one main { display: block }
.one article:not(.focus) { display: none }
.one article { flex-wrap: wrap; gap: 16px }
.one .pic { flex: 0 1 auto; width: min(100%, calc(68vh * var(--ratio))) }
.one .txt { flex: 1 1 320px }
.one .q { font-size: 19px }
.one .a { font-size: 22px }
body:not(.one) .focus { outline: 3px solid #4a7ab5 }
"""

# `pictures` (image id -> data URL) is defined before it.
SCRIPT = """
const by = id => document.getElementById(id);
const cards = [...document.querySelectorAll('article')];
const title = document.querySelector('main').dataset.title;
const store = 'audit of ' + title;
let verdicts = {};  // what a question says -> right, wrong or unsure
let shown = [];     // the cards that fit the filters
let at = 0;         // which of them is in focus
try { verdicts = JSON.parse(localStorage.getItem(store) || '{}') } catch (error) { /* no storage: nothing is kept */ }

function keep() {
  try { localStorage.setItem(store, JSON.stringify(verdicts)) } catch (error) { /* as above */ }
}

function load(card) {
  const image = card && card.querySelector('img');
  if (image && !image.src) image.src = pictures[image.dataset.id];
}

function fits(card) {
  const text = by('find').value.toLowerCase();
  return ['type', 'form', 'source'].every(key => !by(key).value || card.dataset[key] === by(key).value)
    && (!by('bad').checked || card.dataset.bad)
    && (!by('open').checked || !verdicts[card.dataset.key])
    && (!text || card.textContent.toLowerCase().includes(text));
}

function select() {
  const now = shown[at];
  shown = cards.filter(fits);
  cards.forEach(card => { card.hidden = !shown.includes(card) });
  const place = shown.indexOf(now);
  at = place >= 0 ? place : Math.max(0, Math.min(at, shown.length - 1));
  focus();
}

function focus() {
  const one = document.body.classList.contains('one');
  cards.forEach(card => card.classList.toggle('focus', card === shown[at]));
  if (!one && shown[at]) shown[at].scrollIntoView({block: 'center'});
  (one ? shown.slice(at, at + 2) : shown).forEach(load);
  count();
}

function count() {
  const found = {right: 0, wrong: 0, unsure: 0};
  for (const card of cards) {
    const verdict = verdicts[card.dataset.key];
    if (verdict) { found[verdict] += 1; card.dataset.verdict = verdict } else delete card.dataset.verdict;
  }
  const done = found.right + found.wrong + found.unsure;
  by('done').max = cards.length || 1;
  by('done').value = done;
  by('count').textContent = `${done} of ${cards.length} judged: ${found.right} right, ${found.wrong} wrong, `
    + `${found.unsure} unsure`;
  by('shown').textContent = shown.length ? ` · question ${at + 1} of ${shown.length} shown` : ' · no question fits';
}

function move(step) {
  at = Math.max(0, Math.min(at + step, shown.length - 1));
  focus();
}

function judge(verdict) {
  const card = shown[at];
  if (!card) return;
  if (verdict) verdicts[card.dataset.key] = verdict; else delete verdicts[card.dataset.key];
  keep();
  if (verdict && by('open').checked) select(); else move(verdict ? 1 : 0);
}

function mode() {
  const one = document.body.classList.toggle('one');
  by('mode').textContent = one ? 'all at once (g)' : 'one by one (g)';
  focus();
}

function judged() {
  return cards.filter(card => verdicts[card.dataset.key]).map(card => ({
    id: card.dataset.question, type: card.dataset.type, form: card.dataset.form, source: card.dataset.source,
    question: card.querySelector('.q').textContent, answer: card.querySelector('.a').textContent,
    verdict: verdicts[card.dataset.key],
  }));
}

function save() {
  const text = JSON.stringify({dataset: title, judgments: judged()}, null, 1);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'judgments.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const keys = {
  y: () => judge('right'), n: () => judge('wrong'), u: () => judge('unsure'), x: () => judge(''), g: mode,
  ArrowRight: () => move(1), ArrowDown: () => move(1), ArrowLeft: () => move(-1), ArrowUp: () => move(-1),
};
document.addEventListener('keydown', event => {
  const typing = event.target.id === 'find' || event.target.tagName === 'SELECT';
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
by('find').addEventListener('input', select);
// A select that keeps the focus would swallow the keys.
['type', 'form', 'source', 'bad', 'open'].forEach(id => by(id).addEventListener('change', () => {
  select();
  by(id).blur();
}));
by('mode').onclick = mode;
by('save').onclick = save;
by('clear').onclick = () => {
  if (confirm('Forget the judgments of this page?')) { verdicts = {}; keep(); select() }
};
cards.forEach(card => card.addEventListener('click', () => {
  const place = shown.indexOf(card);
  if (place >= 0 && place !== at) { at = place; focus() }
}));
select();
at = Math.max(0, shown.findIndex(card => !verdicts[card.dataset.key]));  // go on where one stopped
focus();
"""
