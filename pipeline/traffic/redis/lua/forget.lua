-- Removes predictions with all that belongs to them.
-- Arguments: `all`, or `waiting` for those whose prediction is not written yet; ids.
for i = 2, #ARGV do
  if ARGV[1] == 'all' or redis.call('HEXISTS', 'traffic:p:' .. ARGV[i], 'seq') == 0 then remove(ARGV[i]) end
end
