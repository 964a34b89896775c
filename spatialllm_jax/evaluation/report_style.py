"""Style and script of the report page: one file, no network, light and dark, wide and narrow."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d2126;--soft:#5c6670;--line:#e2dfd9;--track:#efece6;
--row0:#8793a3;--row1:#2563b8;--row2:#b0672a;--row3:#6d5bb5;--row4:#2f8a57;--blind:#c9bfae;--chance:#a33a3a;
--right:#1d7a46;--wrong:#b3402f;--shade:rgba(37,99,184,.07)}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1c2026;--ink:#e6e4df;--soft:#9aa3ad;--line:#2e343c;
--track:#262b32;--row0:#8f9aaa;--row1:#6aa6f0;--row2:#e09a5a;--row3:#ab9af0;--row4:#63c48d;--blind:#5d5749;--chance:#e08a80;
--right:#63c48d;--wrong:#f08a78;--shade:rgba(106,166,240,.09)}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
font-variant-numeric:tabular-nums}
.wrap{max-width:1060px;margin:0 auto;padding:0 20px}
header{padding:44px 0 10px}
.over{font-size:13px;letter-spacing:.04em;color:var(--soft);margin:0 0 6px}
h1{font:600 clamp(24px,3.6vw,36px)/1.2 "Iowan Old Style","Palatino Linotype",Palatino,Georgia,serif;margin:0 0 12px;
max-width:26em;text-wrap:balance}
h2{font:600 21px/1.3 "Iowan Old Style","Palatino Linotype",Palatino,Georgia,serif;margin:52px 0 4px}
h3{font-size:14px;font-weight:600;margin:0 0 6px}
p{margin:0 0 10px;max-width:46em}.lead{font-size:17px}.note{color:var(--soft);font-size:14px}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:14px;margin-top:14px}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:3px}
.scroll{overflow-x:auto;margin:14px 0 10px;border-top:1px solid var(--line);border-bottom:1px solid var(--line)}
table{border-collapse:collapse;width:100%;font-size:14.5px;white-space:nowrap}
th,td{padding:6px 12px;text-align:right}th{font-weight:500;color:var(--soft);font-size:13px;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);padding-left:2px}
tbody tr{border-top:1px solid var(--line)}tr.sum td{font-weight:600}tr.group td{border-top:1px solid var(--soft)}
tr.type td:first-child{padding-left:16px}
.ci{color:var(--soft);font-weight:400;font-size:12.5px;margin-left:6px}.dim{color:var(--soft)}
.best{color:var(--row1)}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13.5px;color:var(--soft);margin:8px 0 12px}
.key i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;vertical-align:-1px}
.key i.tick{width:0;height:13px;border-left:2px dashed var(--chance);border-radius:0}
.bars{display:grid;grid-template-columns:minmax(110px,max-content) 1fr;gap:11px 14px;align-items:center;font-size:14px;
margin:10px 0 16px}
.bars .name{line-height:1.25}.bars small{display:block;color:var(--soft);font-size:12px}
.tracks{display:grid;gap:3px;min-width:0}
.track{position:relative;height:17px;background:var(--track);border-radius:2px;margin-right:62px}
.big .track{height:28px}
.track b{position:absolute;inset:0 auto 0 0;border-radius:2px 0 0 2px}
.track u{position:absolute;top:50%;height:0;border-top:1.5px solid var(--ink)}
.track u::before,.track u::after{content:"";position:absolute;top:-5px;height:9px;border-left:1.5px solid var(--ink)}
.track u::before{left:0}.track u::after{right:0}
.track em{position:absolute;top:-3px;bottom:-3px;border-left:2px dashed var(--chance)}
.track s{position:absolute;left:100%;top:50%;transform:translateY(-50%);padding-left:8px;text-decoration:none;
white-space:nowrap;font-size:13px}
.big .track s{font-size:15px;font-weight:600}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:22px 36px;margin-top:14px}
figure{margin:0}figcaption{font-size:13.5px;color:var(--soft);margin-bottom:4px}
.plot{width:100%;height:auto;display:block}.plot text{fill:var(--soft);font-size:11.5px;font-family:inherit}
.plot .axis{stroke:var(--line)}.plot .stage{stroke:var(--soft);stroke-dasharray:2 3}
.plot path{fill:none;stroke-width:1.8;stroke-linejoin:round}
.filters{position:sticky;top:0;background:var(--paper);padding:10px 0;z-index:3;border-bottom:1px solid var(--line);
margin-bottom:16px;display:grid;gap:6px}
.chips{display:flex;flex-wrap:wrap;gap:6px}
button{font:inherit;font-size:13px;padding:3px 11px;border:1px solid var(--line);border-radius:99px;background:none;
color:var(--ink);cursor:pointer}
button[aria-pressed=true]{background:var(--ink);color:var(--paper);border-color:var(--ink)}
button:focus-visible,a:focus-visible{outline:2px solid var(--row1);outline-offset:2px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:18px}
article{background:var(--card);border:1px solid var(--line);border-radius:6px;overflow:hidden;display:flex;
flex-direction:column}
article[hidden]{display:none}
.pic{position:relative;background:#000}.pic img{display:block;width:100%}
.pic svg{position:absolute;inset:0;width:100%;height:100%}
.pic svg text{fill:#fff;stroke:rgba(0,0,0,.72);font-weight:600;font-family:inherit}
.txt{padding:11px 14px 13px;font-size:14px;display:flex;flex-direction:column;gap:8px;flex:1}
.txt p{margin:0}.kind{font-size:12.5px;color:var(--soft)}.ask{font-weight:600;line-height:1.35;white-space:pre-line}
.opts{display:grid;grid-template-columns:minmax(64px,max-content) 1fr;gap:5px 10px;align-items:center;font-size:13.5px}
.opts .good{color:var(--right);font-weight:600}
.opts .track{height:9px;margin-right:40px}.opts .track s{font-size:11.5px;color:var(--soft);padding-left:6px}
.says{display:grid;gap:2px;font-size:13.5px}.says span{display:flex;gap:7px;align-items:baseline}
.says i{flex:none;width:9px;height:9px;border-radius:2px}.yes{color:var(--right)}.no{color:var(--wrong)}
.num{font-size:12.5px;color:var(--soft);border-top:1px solid var(--line);padding-top:7px;margin-top:auto!important}
footer{margin:56px 0 40px;padding-top:14px;border-top:1px solid var(--line);font-size:13.5px;color:var(--soft)}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--track);padding:1px 5px;border-radius:3px;
overflow-wrap:anywhere}
@media (max-width:560px){.wrap{padding:0 14px}header{padding-top:26px}.filters .chips{flex-wrap:nowrap;overflow-x:auto}
.filters button{flex:none}.bars{grid-template-columns:1fr;gap:3px}.bars .tracks{margin-bottom:9px}
.bars small{display:inline;margin-left:8px}th,td{padding:6px 8px}}
"""

SCRIPT = """
const cards=[...document.querySelectorAll('article')],state={type:'',verdict:''};
function show(){let n=0;for(const c of cards){
const ok=(!state.type||c.dataset.type===state.type)
&&(!state.verdict||c.dataset.verdict.split(' ').includes(state.verdict));
c.hidden=!ok;n+=ok}document.getElementById('shown').textContent=n+' of '+cards.length+' shown'}
document.querySelectorAll('.chips button').forEach(b=>b.addEventListener('click',()=>{
state[b.dataset.key]=b.dataset.value;
document.querySelectorAll('.chips button[data-key='+b.dataset.key+']').forEach(o=>o.setAttribute('aria-pressed',o===b));
show()}));if(cards.length)show();
"""
