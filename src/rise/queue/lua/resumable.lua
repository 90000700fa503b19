-- What `resume` would let go on. Changes nothing.
local rows = {}
for _, task in ipairs(meant_suspended(tonumber(ARGV[2]))) do rows[#rows + 1] = row_of(task) end
return rows
