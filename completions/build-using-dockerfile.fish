# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_build_using_dockerfile_global_optspecs
    string join \n t/tag= f/file= target= build-arg= build-context= platform= label= o/output= load= push= iidfile= metadata-file= no-cache= no-cache-filter= pull= cache-from= cache-to= secret= ssh= network= add-host= shm-size= ulimit= allow= progress= q/quiet= buildkit-addr= tlscacert= tlscert= tlskey= tlsservername= userns= clientside-frontend= provenance= sbom= h/help V/version
end

function __fish_build_using_dockerfile_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_build_using_dockerfile_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_build_using_dockerfile_using_subcommand
    set -l cmd (__fish_build_using_dockerfile_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -s t -l tag -d 'Name for the image, as name:tag (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -s f -l file -d 'The Dockerfile; `-` reads it from stdin [default: PATH/Dockerfile]' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l target -d 'The stage to build [default: the last]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l build-arg -d 'Value for an ARG; without `=`, this environment\'s (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l build-context -d 'Another context by name: a directory, docker-image://, oci-layout://, a URL, or target:STAGE (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l platform -d 'Platform to build for [default: this machine\'s]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l label -d 'Label for the image (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -s o -l output -d 'Where the result goes: a directory, `-` (a tar on stdout), or type=image|registry|docker|oci|local|tar[,dest=…][,…] (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l load -d 'Load the image into Docker or Podman [default: if one is there and no output is given]' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l push -d 'Push the image to the registry its name says (short for -o type=registry)' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l iidfile -d 'Write the image\'s ID to a file' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l metadata-file -d 'Write what was made (digests, names) to a file as JSON' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l no-cache -d 'Run every step anew' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l no-cache-filter -d 'Run the steps of these stages anew (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l pull -d 'Ask the registries for newer base images' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l cache-from -d 'Cache to use beside the daemon\'s own: NAME, or type=registry|gha|s3,… (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l cache-to -d 'Where to write the cache: inline, or type=registry|gha|s3,… (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l secret -d 'Secret for steps that mount it: id=ID[,src=FILE|,env=VARIABLE] (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l ssh -d 'SSH agent or keys for steps that mount them: default, or ID[=SOCKET|KEY[,KEY]] (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l network -d 'Network of RUN steps: default, host or none' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l add-host -d 'Line for /etc/hosts of RUN steps (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l shm-size -d 'Size of /dev/shm, such as 128m' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l ulimit -d 'Resource limit, such as nofile=1024:2048 (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l allow -d 'Grant what a Dockerfile may only use with your word: network.host, security.insecure (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l progress -d 'How progress is shown' -r -f -a "auto\t'A live display on a terminal, plain lines elsewhere'
tty\t'A live display'
plain\t'One line for each event; for CI'
quiet\t'Nothing but errors'
rawjson\t'One JSON object for each event, as BuildKit writes them'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -s q -l quiet -d 'Print the image\'s ID alone' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l userns -d 'Which user IDs there are inside builds: auto, subids, single or root; for the daemon that bud starts' -r -f -a "auto\t'The best that this machine allows'
subids\t'The own ID and sub-IDs'
single\t'The own ID alone'
root\t'Real root, no user namespace'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l clientside-frontend -d 'Translate the Dockerfile here instead of in the daemon (works with any BuildKit)' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l provenance -d 'Attestations; a later version writes them' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -l sbom -d 'Attestations; a later version writes them' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -s V -l version -d 'Print version'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "build" -d 'Build an image (what `bud` does without a command)'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "images" -d 'List the images that were built'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "ls" -d 'List the images that were built'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "rmi" -d 'Remove images by name'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "du" -d 'Show what the build cache holds and how much disk it takes'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "prune" -d 'Remove build cache that is not in use'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "cache" -d 'List, remove, export and import the cache mounts of RUN steps'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "daemon" -d 'Run the daemon in the foreground, or start, stop and look at the one in the background'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "doctor" -d 'Check whether this machine can build, by trying, and say what mends it'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_needs_command" -a "completions" -d 'Write the shell completions into a folder'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -s t -l tag -d 'Name for the image, as name:tag (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -s f -l file -d 'The Dockerfile; `-` reads it from stdin [default: PATH/Dockerfile]' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l target -d 'The stage to build [default: the last]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l build-arg -d 'Value for an ARG; without `=`, this environment\'s (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l build-context -d 'Another context by name: a directory, docker-image://, oci-layout://, a URL, or target:STAGE (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l platform -d 'Platform to build for [default: this machine\'s]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l label -d 'Label for the image (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -s o -l output -d 'Where the result goes: a directory, `-` (a tar on stdout), or type=image|registry|docker|oci|local|tar[,dest=…][,…] (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l load -d 'Load the image into Docker or Podman [default: if one is there and no output is given]' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l push -d 'Push the image to the registry its name says (short for -o type=registry)' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l iidfile -d 'Write the image\'s ID to a file' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l metadata-file -d 'Write what was made (digests, names) to a file as JSON' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l no-cache -d 'Run every step anew' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l no-cache-filter -d 'Run the steps of these stages anew (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l pull -d 'Ask the registries for newer base images' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l cache-from -d 'Cache to use beside the daemon\'s own: NAME, or type=registry|gha|s3,… (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l cache-to -d 'Where to write the cache: inline, or type=registry|gha|s3,… (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l secret -d 'Secret for steps that mount it: id=ID[,src=FILE|,env=VARIABLE] (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l ssh -d 'SSH agent or keys for steps that mount them: default, or ID[=SOCKET|KEY[,KEY]] (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l network -d 'Network of RUN steps: default, host or none' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l add-host -d 'Line for /etc/hosts of RUN steps (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l shm-size -d 'Size of /dev/shm, such as 128m' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l ulimit -d 'Resource limit, such as nofile=1024:2048 (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l allow -d 'Grant what a Dockerfile may only use with your word: network.host, security.insecure (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l progress -d 'How progress is shown' -r -f -a "auto\t'A live display on a terminal, plain lines elsewhere'
tty\t'A live display'
plain\t'One line for each event; for CI'
quiet\t'Nothing but errors'
rawjson\t'One JSON object for each event, as BuildKit writes them'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -s q -l quiet -d 'Print the image\'s ID alone' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l userns -d 'Which user IDs there are inside builds: auto, subids, single or root; for the daemon that bud starts' -r -f -a "auto\t'The best that this machine allows'
subids\t'The own ID and sub-IDs'
single\t'The own ID alone'
root\t'Real root, no user namespace'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l clientside-frontend -d 'Translate the Dockerfile here instead of in the daemon (works with any BuildKit)' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l provenance -d 'Attestations; a later version writes them' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -l sbom -d 'Attestations; a later version writes them' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand build" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -s q -l quiet -d 'Print names alone, one a line'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -l json -d 'Print JSON'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand images" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -s q -l quiet -d 'Print names alone, one a line'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -l json -d 'Print JSON'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand ls" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand rmi" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand rmi" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand rmi" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand rmi" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand rmi" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand rmi" -s f -l force -d 'Don\'t mind names that are not there'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand rmi" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l filter -d 'Which records, such as type=exec.cachemount, description~=apt or inuse (repeatable: any of them)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l format -d 'table or json' -r -f -a "table\t'For people'
json\t'For programs'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -s v -l verbose -d 'Show all facts of each record'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -l json -d 'Print JSON'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand du" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l keep-duration -d 'Only what was not used for this long, such as 48h (as --filter until=48h)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l reserved-space -l keep-storage -d 'Always keep this much, such as 10GB' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l max-used-space -d 'Remove, longest unused first, until the cache takes no more than this' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l min-free-space -d 'Remove, longest unused first, until this much of the disk is free' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l filter -d 'Which records, such as type=exec.cachemount or id~=layer:4 (repeatable: any of them)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -s a -l all -d 'Also what is internal, and front ends'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -l dry-run -d 'Show what would be freed, and remove nothing'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -s f -l force -d 'Don\'t ask'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -s v -l verbose -d 'Show each record that is removed'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand prune" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and not __fish_seen_subcommand_from ls list rm export import" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and not __fish_seen_subcommand_from ls list rm export import" -f -a "ls" -d 'List them with their sizes'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and not __fish_seen_subcommand_from ls list rm export import" -f -a "list" -d 'List them with their sizes'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and not __fish_seen_subcommand_from ls list rm export import" -f -a "rm" -d 'Remove them by ID'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and not __fish_seen_subcommand_from ls list rm export import" -f -a "export" -d 'Write one as a tar, with owners'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and not __fish_seen_subcommand_from ls list rm export import" -f -a "import" -d 'Make one hold what a tar holds (what it held before goes)'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -s q -l quiet -d 'Print IDs alone, one a line'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -l json -d 'Print JSON'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -s q -l quiet -d 'Print IDs alone, one a line'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from rm" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from rm" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from rm" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from rm" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from rm" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from export" -s o -l output -d 'File to write [default: stdout]' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from export" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from export" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from export" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from export" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from export" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from import" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from import" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from import" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from import" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from import" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand cache; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l addr -d 'Address to listen on: unix:///path or tcp://host:port, or fd:// for the sockets of a service manager (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l root -d 'Directory of the state [default: $XDG_DATA_HOME/bud]' -r -f -a "(__fish_complete_directories)"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l config -d 'buildkitd.toml [default: ~/.config/buildkit/buildkitd.toml, for root /etc/buildkit/buildkitd.toml]' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l idle-timeout -d 'Exit after this long with nothing to do, such as 30m; 0: never [default: 0, started by a build 30m]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l allow-insecure-entitlement -d 'Entitlement that builds may be granted: network.host, security.insecure (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l tlscert -d 'Certificate' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l tlskey -d 'Key of the certificate' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l tlscacert -d 'CA that clients\' certificates must be signed by' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l userns -d 'Which user IDs there are inside builds: sub-IDs through newuidmap (subids), the own ID alone (single), no user namespace (root), or the best of these that this machine allows' -r -f -a "auto\t'The best that this machine allows'
subids\t'The own ID and sub-IDs'
single\t'The own ID alone'
root\t'Real root, no user namespace'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-snapshotter -d 'How snapshots are put together: auto, overlayfs or native' -r -f -a "auto\t'Overlay where the kernel allows it'
overlayfs\t'Overlay mounts'
native\t'Plain copies'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-no-process-sandbox -d 'Leave RUN steps the /proc around the daemon; for containers that can\'t mount their own' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-net -d 'Network of RUN steps: auto, host or none' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-platform -d 'Platform to offer (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-labels -d 'Label of the worker (repeatable)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-gc -d 'Remove old cache by itself [default: true]' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-gc-keepstorage -d 'Cache that is kept, disk that is to be free, cache at most: MB, or such as 10GB,20%,100GB' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l rootless -d 'Accepted for buildkitd\'s sake: it is always so' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker -d 'Accepted for buildkitd\'s sake' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l oci-worker-rootless -d 'Accepted for buildkitd\'s sake' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l containerd-worker -d 'Accepted for buildkitd\'s sake: there is no containerd worker' -r -f -a "true\t''
false\t''"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l log-format -d 'Accepted for buildkitd\'s sake' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l debug -d 'More in the log'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l insecure-tcp -d 'Listen on TCP without client certificates: whoever reaches the port can build and read this user\'s builds'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -l spawned -d 'Set by a client that starts the daemon: readiness goes to stdout, the log to stderr'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -f -a "start" -d 'Start it, if it doesn\'t run'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -f -a "stop" -d 'Stop it, unless builds run'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -f -a "status" -d 'Show where it is, what it does, what it holds'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and not __fish_seen_subcommand_from start stop status logs" -f -a "logs" -d 'Show its log'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from start" -l idle-timeout -d 'Let it exit after this long with nothing to do, such as 30m; 0: never' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from start" -l userns -d 'Which user IDs there are inside builds: auto, subids, single or root' -r -f -a "auto\t'The best that this machine allows'
subids\t'The own ID and sub-IDs'
single\t'The own ID alone'
root\t'Real root, no user namespace'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from start" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -s f -l force -d 'End running builds'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -s w -l wait -d 'Wait for running builds to end, then stop'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from status" -l buildkit-addr -d 'The daemon\'s address: unix:///path, tcp://host:port, docker-container://name, podman-container://name, kube-pod://name, ssh://user@host [default: this user\'s own daemon, started when it doesn\'t run]' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from status" -l tlscacert -d 'CA certificate that the daemon\'s must be signed by (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from status" -l tlscert -d 'Client certificate (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from status" -l tlskey -d 'Client key (tcp://)' -r -F
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from status" -l tlsservername -d 'Name that the daemon\'s certificate must carry, if it isn\'t the address\'s host (tcp://)' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from status" -l json -d 'Print JSON'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from logs" -s n -l tail -d 'How many of the last lines' -r
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from logs" -s f -l follow -d 'Go on as it grows'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand daemon; and __fish_seen_subcommand_from logs" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand doctor" -l root -d 'Directory of the state that is looked at [default: $XDG_DATA_HOME/bud]' -r -f -a "(__fish_complete_directories)"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand doctor" -l userns -d 'Which user IDs there shall be inside builds: auto, subids, single or root' -r -f -a "auto\t'The best that this machine allows'
subids\t'The own ID and sub-IDs'
single\t'The own ID alone'
root\t'Real root, no user namespace'"
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand doctor" -l json -d 'Print JSON'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c build-using-dockerfile -n "__fish_build_using_dockerfile_using_subcommand completions" -s h -l help -d 'Print help'
