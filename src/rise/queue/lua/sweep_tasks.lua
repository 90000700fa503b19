-- Suspended tasks whose time has passed are of no use to anybody: the next claim of their lane ends them.
local late = call('ZRANGEBYSCORE', DEADLINES, '-inf', '(' .. now, 'LIMIT', 0, ARGV[1])
if #late > 0 then even_when_full() end
for _, id in ipairs(late) do
  local task = load(id)
  set_status(task, 'pending', { due = now })
  announce(task, now)
end
return #late
