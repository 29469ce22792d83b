# bash completion of bud: `bud __complete` knows the answers.
_bud() {
    local line value
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            :files) compopt -o default ;;
            :dirs) compopt -o plusdirs ;;
            *)
                value=${line%%$'\t'*}
                [[ $value == *= ]] && compopt -o nospace
                COMPREPLY+=("$(printf %q "$value")")
                ;;
        esac
    done < <("${1/#\~/$HOME}" __complete bash "$COMP_CWORD" "${COMP_WORDS[@]}" 2>/dev/null)
}
complete -F _bud bud build-using-dockerfile
