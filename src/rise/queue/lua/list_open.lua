-- The meant ones among the next so many open tasks; and where to go on, false at the end.
local after, look, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local found = call('ZRANGEBYLEX', OPEN, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, look)
local rows = {}
for i, id in ipairs(found) do
  local task = meant(id)
  if task then rows[#rows + 1] = row_of(task) end
  if #rows == limit then return { id, rows } end
end
return { #found == look and found[#found], rows }
