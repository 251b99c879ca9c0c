-- Moves the place of a reader forward, never back.
-- Arguments: reader, seq.
for _, group in ipairs(redis.call('XINFO', 'GROUPS', 'traffic:labelled')) do
  if group[2] == ARGV[1] then
    for i = 1, #group, 2 do
      if group[i] == 'last-delivered-id' and tonumber(string.match(group[i + 1], '^%d+')) >= tonumber(ARGV[2]) then
        return
      end
    end
    redis.call('XGROUP', 'SETID', 'traffic:labelled', ARGV[1], ARGV[2] .. '-0')
    return
  end
end
redis.call('XGROUP', 'CREATE', 'traffic:labelled', ARGV[1], ARGV[2] .. '-0')
