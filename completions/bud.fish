# fish completion of bud: `bud __complete` knows the answers.
function __bud_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l all (commandline -op)
    set -l next (math (count $before) + 1)
    test -n "$current"; and set next (math $next + 1)
    set -l program (string replace -r '^~' $HOME -- $before[1])
    set -l head (string match -r '^.*=' -- $current)
    for line in (command $program __complete fish (count $before) $before (string unescape -- "$current") $all[$next..-1] 2>/dev/null)
        switch $line
            case :files
                printf "$head%s\n" (__fish_complete_path (string replace -r '^.*=' '' -- $current))
            case :dirs
                printf "$head%s\n" (__fish_complete_directories (string replace -r '^.*=' '' -- $current) '')
            case '*'
                echo $line
        end
    end
end
complete -c bud -c build-using-dockerfile -f -a '(__bud_complete)'
